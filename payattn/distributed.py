"""Several processes that train one network together: what ``fit``, ``evaluate`` and ``recipes.run`` need for it.

The same command or script, started by ``torchrun``, is all it takes; nothing in it changes:

.. code-block:: sh

    torchrun --standalone --nproc_per_node 2 -m payattn train glyphs/pc            # two GPUs (or two CPU processes)
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint first-machine:29500 \
        -m payattn train ran-imagenet/attention-56 --data /path/to/imagenet         # the same line on both machines
    torchrun --standalone --nproc_per_node 2 my_script.py                           # a script that calls pa.fit

Every process holds the network and draws the same batches; each takes its slice of every batch, and the gradients are
summed (torch's DistributedDataParallel; NCCL between CUDA devices, Gloo between CPUs). ``batch_size`` is that of all
processes together, and the result is that of one process but for rounding. Two things differ: dropout draws other
numbers in every process, and with ``sync_batch_norm=False`` each normalises by its own slice. Only the first process
writes files and reports. Under torchrun every process must make the same calls in the same order: ``fit`` and
``evaluate`` wait for all.

Without torchrun every function here does nothing, or what one process needs.
"""

from __future__ import annotations

import atexit
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives up; reading a large folder takes its time."""

LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "timeout", "socket closed", "connection refused",
        "aborted", "remote process exited", "read error", "nccl")  # fmt: skip


def size() -> int:
    """Number of processes that work together; 1 without ``torchrun``, and before ``start``.

    Example:
        >>> size(), rank(), is_main()
        (1, 0, True)
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes and reports."""
    return rank() == 0


def launched() -> bool:
    """Whether ``torchrun`` (or another launcher that sets its variables) started several processes.

    Example:
        >>> launched()
        False
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def device_here() -> torch.device:
    """The CUDA device of this process, where there is one, else the CPU.

    Raises:
        ValueError: more processes on this machine than CUDA devices.

    Example:
        >>> device_here().type in ("cpu", "cuda")
        True
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not launched():
        return torch.device("cuda")
    local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= devices:
        raise ValueError(
            f"this is process {local + 1} on a machine with {devices} CUDA device{'s' if devices > 1 else ''}: "
            f"start with --nproc_per_node {devices}, or with device='cpu'"
        )
    return torch.device("cuda", local)


def start(device: torch.device) -> None:
    """Join the other processes that ``torchrun`` started; nothing where there are none, or where they are joined.

    Args:
        device: on which this process computes: its own CUDA device, or the CPU.

    Raises:
        ValueError: a device that processes cannot share.

    Example:
        >>> start(torch.device("cpu")); size()
        1
    """
    if not launched() or dist.is_initialized():
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"several processes compute on CPUs or on CUDA devices, got {device}; use device='cpu'")
    if device.type == "cuda":
        if device != device_here():
            raise ValueError(f"each process needs its own CUDA device, got {device} for one of several; "
                             "use device='auto' or 'cuda'")  # fmt: skip
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def from_main(function: Callable[[], T]) -> T:
    """What a function gives in the first process, in all of them; so do its errors. It runs there alone.

    For everything that touches files: on two machines only the first has them. All processes must call this.

    Example:
        >>> from_main(lambda: 3)
        3
    """
    if size() == 1:
        return function()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box[0] = function()
        except Exception as error:
            box[1] = error
            dist.broadcast_object_list([None, _sendable(error)])
            raise
    dist.broadcast_object_list(box)
    if box[1] is not None:
        box[1].told = True  # the first process says it; one message is enough
        raise box[1]
    result: T = box[0]
    return result


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def gather(value: T) -> list[T]:
    """The value of every process, in their order, in all of them.

    Example:
        >>> gather("a")
        ['a']
    """
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def add_up(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes.

    Example:
        >>> total = torch.ones(2)
        >>> add_up(total); total
        tensor([1., 1.])
    """
    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def own_seed(seed: int) -> int:
    """The seed of what each process draws by itself (dropout): another in every process, the given one in the first.

    Example:
        >>> own_seed(7)
        7
    """
    return (seed + rank() * 0x9E3779B97F4A7C15) % 2**63


@contextmanager
def together() -> Iterator[None]:
    """Say plainly what it means when another process has ended and this one waits for it in vain.

    Raises:
        ConnectionError: in place of the errors of the network.

    Example:
        >>> with together():
        ...     pass
    """
    try:
        yield
    except RuntimeError as error:
        if size() > 1 and any(word in str(error).lower() for word in LOST):
            raise ConnectionError(
                f"process {rank() + 1} of {size()} waits in vain for another one, which has ended; "
                "the message of that one says why"
            ) from error
        raise


def parallel(model: nn.Module, images: Tensor) -> nn.Module:
    """The network as several processes train it: in the backward pass gradients become means over processes.

    The network itself is not changed, but for the weights and buffers of the first process, which all others take.
    One process gets it back as it is. A parameter that the loss does not reach gets no gradient, as in one process.

    Args:
        model: in evaluation mode.
        images: a few, where the network is: by them the parameters without a gradient are found, for which the
            processes must not wait.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> parallel(net, torch.zeros(1, 2)) is net
        True
    """
    if size() == 1:
        return model
    with torch.enable_grad():
        parameters = [p for p in model.parameters() if p.requires_grad]
        reached = torch.autograd.grad(model(images).sum(), parameters, allow_unused=True)
    where = [images.device] if images.device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has another name in new versions of torch
        return nn.parallel.DistributedDataParallel(
            model, where, broadcast_buffers=False, find_unused_parameters=any(g is None for g in reached)
        )


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first, such as the statistics of batch norm.

    Example:
        >>> share_buffers(nn.BatchNorm2d(3))
    """
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class _Sum(torch.autograd.Function):
    """The sum over processes, with its derivative: every process depends on the summand of every other."""

    @staticmethod
    def forward(ctx: Any, summand: Tensor) -> Tensor:
        total = summand.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total: Tensor = _Sum.apply(gradients[0].contiguous())
        return total


def whole_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    r"""Batch norm with the statistics of the whole batch, which lies in slices in several processes.

    .. math:: \mu = \frac{\sum_p \sum_i x_{p,i}}{\sum_p n_p}, \quad
        \sigma^2 = \frac{\sum_p \sum_i x_{p,i}^2}{\sum_p n_p} - \mu^2, \quad
        y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    The sums are taken in float64, and travel in one message. The running statistics take the same mean and, as in
    ``torch.nn.BatchNorm2d``, the variance with n - 1.

    Args:
        norm: in training mode; its parameters and buffers are used, and the buffers updated.
        x: this process's slice (N, C, ...).

    Raises:
        ValueError: one value per channel in the whole batch.
    """
    norm._check_input_dim(x)  # type: ignore[operator]
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = x.double()
    number = wide.new_tensor([x.numel() / x.shape[1]])
    sums, squares, number = _Sum.apply(torch.cat([wide.sum(dims), wide.square().sum(dims), number])).split(
        [x.shape[1], x.shape[1], 1]
    )
    count = number.item()
    if count < 2:
        raise ValueError(f"batch norm needs more than one value per channel, got {tuple(x.shape)} in all")
    mean = sums / count
    variance = (squares / count - mean.square()).clamp(min=0)
    if norm.track_running_stats:
        _track(norm, mean.detach(), variance.detach() * count / (count - 1))
    factor = (variance + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight
    offset = -mean * factor + (norm.bias if norm.affine else 0)
    return (wide * factor.view(shape) + offset.view(shape)).to(x.dtype)


def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    factor = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), factor)


@contextmanager
def synchronised(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Batch norm over all processes for a block; after it every module is as it was.

    Torch's own SyncBatchNorm does it on CUDA devices; it refuses the CPU, where :func:`whole_batch_norm` does.

    Args:
        model: the modules that are batch norms now and in training mode change their way of computing.
        wanted: False leaves all as it is.

    Raises:
        ValueError: a batch norm of a class that computes in its own way.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(3))
        >>> with synchronised(net):
        ...     net(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """
    with ExitStack() as stack:
        if wanted and size() > 1:
            for name, module in model.named_modules():
                if isinstance(module, _BatchNorm):
                    module.__dict__["forward"] = _forward(name, module)
                    stack.callback(module.__dict__.pop, "forward")
        yield


def _forward(name: str, norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        raise ValueError(
            f"{name} is a {type(norm).__name__}, which computes in its own way and cannot be synchronised; "
            "use sync_batch_norm=False"
        )
    return partial(_norm_of_all, norm, nn.SyncBatchNorm.convert_sync_batchnorm(norm))


def _norm_of_all(norm: _BatchNorm, on_cuda: Any, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    if x.device.type == "cpu":
        return whole_batch_norm(norm, x)
    on_cuda.train()
    on_cuda.momentum = norm.momentum  # zero while something is computed once more for the backward pass
    result: Tensor = on_cuda(x)  # it shares the parameters and buffers
    return result


def same(what: Mapping[str, Any], differences: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]) -> None:
    """Find out before the first step when the processes were not given the same: they would wait for each other.

    Args:
        what: plain data that must be equal in all.
        differences: of two such, as sentences.

    Raises:
        ValueError: in every process, with the differences.
    """
    every = gather(what)
    for number, other in enumerate(every[1:], 2):
        found = list(differences(every[0], other))
        if found:
            raise ValueError(f"the processes do not do the same: in process {number} {'; '.join(found)}")
