"""What a network costs: parameters, multiply-adds, activations, bytes kept for the backward pass, what does not learn.

Counts, not timings: they are the same on every machine. On the meta device they cost neither memory nor arithmetic:

    with torch.device("meta"):
        net = pa.create("attention-92-imagenet", classes=1000)
    pa.cost.multiply_adds(net, 3, 224, 224), pa.cost.total(pa.cost.layers(net, 3, 224, 224), "written")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from payattn.attention import choose
from payattn.transfer import deciding

__all__ = ["Layer", "layers", "multiply_adds", "parameters", "saved_bytes", "total", "unlearned"]

Result = TypeVar("Result")
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_TRANSPOSED, *_NORM)


class Layer(NamedTuple):
    """The counts of one layer for one image; a layer that is called several times adds them up.

    ``kind`` is its class; ``multiply_adds`` are zero for BatchNorm; ``read`` and ``written`` are the elements of its
    input and its output.

    Example:
        >>> Layer("Conv2d", parameters=27, multiply_adds=1728, read=192, written=64).multiply_adds
        1728
    """

    kind: str
    parameters: int
    multiply_adds: int
    read: int
    written: int


def parameters(parts: nn.Module | Iterable[nn.Module]) -> int:
    """Number of learned parameters of a module, or of several.

    Example:
        >>> parameters(nn.Linear(4, 3)), parameters([nn.Linear(4, 3), nn.BatchNorm2d(2)])
        (15, 19)
    """
    modules = [parts] if isinstance(parts, nn.Module) else parts
    return sum(p.numel() for module in modules for p in module.parameters())


def layers(model: nn.Module, *shape: int) -> dict[str, Layer]:
    """Count every convolution, linear layer and BatchNorm while one input passes through.

    A convolution or linear layer with weight W, whose output has n positions, costs ``n |W|`` multiply-adds: every
    element of the weight is used once at every position; for a transposed convolution n is that of its input. Biases,
    BatchNorm, ReLU, pooling, resizing, sigmoids, and sums and products of tensors are not counted, as is usual where
    papers say FLOPs.

    Args:
        model: any module; every part of it is left as it was. It may live on the meta device.
        shape: of one input without the batch, such as ``3, 32, 32``.

    Returns:
        layer name to ``Layer``, in the order of the first calls. Layers that are not called are missing.

    Raises:
        ValueError: if the shape is empty or not positive.

    Source: the multiply-adds that the Residual Attention Network prints as FLOPs.

    Example:
        >>> found = layers(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)), 3, 9, 9)
        >>> found["0"].multiply_adds == 5 * 5 * 8 * 3 * 3 * 3
        True
        >>> found["1"].multiply_adds, found["1"].written
        (0, 200)
    """
    if not shape or min(shape) < 1:
        raise ValueError(f"shape must be that of one input without the batch, such as 3, 32, 32, got {shape}")
    found: dict[str, Layer] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            before = found.get(name, Layer("", 0, 0, 0, 0))
            side = inputs[0] if isinstance(layer, _TRANSPOSED) else out  # weight: (C_in, ...), or (C_out, ...)
            positions = 0 if isinstance(layer, _NORM) else side.numel() // layer.weight.shape[0]
            found[name] = Layer(
                type(layer).__name__, parameters(layer), before.multiply_adds + positions * layer.weight.numel(),
                before.read + inputs[0].numel(), before.written + out.numel(),
            )  # fmt: skip

        return hook

    some = next(model.parameters(), torch.zeros(()))
    handles = [part.register_forward_hook(record(key)) for key, part in model.named_modules() if _is_counted(part)]
    try:
        with deciding(model), torch.no_grad():
            model(torch.zeros(1, *shape, dtype=some.dtype, device=some.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def multiply_adds(model: nn.Module, *shape: int) -> int:
    """Multiply-adds of all convolutions and linear layers for one input, see ``layers``.

    Args:
        model: any module, also on the meta device.
        shape: of one input without the batch, such as ``3, 32, 32``.

    Example:
        >>> multiply_adds(nn.Conv2d(16, 8, kernel_size=3, padding=1), 16, 10, 10)  # 9 * 16 * 8 weights, 100 positions
        115200
    """
    return total(layers(model, *shape))


def _is_counted(part: nn.Module) -> bool:
    return isinstance(part, _COUNTED)


def total(found: Mapping[str, Layer], count: str = "multiply_adds") -> int:
    """Sum one count over layers, as ``layers`` returns them.

    Args:
        found: layer name to ``Layer``.
        count: ``"parameters"``, ``"multiply_adds"``, ``"read"`` or ``"written"``.

    Raises:
        ValueError: for another count, with the nearest.

    Example:
        >>> total({"a": Layer("Conv2d", 9, 90, 10, 10), "b": Layer("BatchNorm2d", 2, 0, 10, 10)}, "parameters")
        11
    """
    choose("count", count, Layer._fields[1:])
    return sum(getattr(layer, count) for layer in found.values())


def saved_bytes(function: Callable[[], Result], without: nn.Module | None = None) -> tuple[Result, int]:
    """Run a function and count the bytes that autograd keeps for the backward pass, each piece of memory once.

    Args:
        function: builds a graph, for example ``lambda: model(images).sum()``.
        without: a module whose parameters and buffers do not count: they are there anyway.

    Returns:
        what the function returned, and the bytes kept.

    Raises:
        ValueError: for tensors on the meta device, whose memory cannot be told apart.

    Example:
        >>> x = torch.ones(5, requires_grad=True)
        >>> saved_bytes(lambda: x.exp().sum())[1]                 # exp keeps its result: five numbers of four bytes
        20
    """
    kept: dict[int, int] = {}
    own = set() if without is None else {_place(t) for t in (*without.parameters(), *without.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            raise ValueError("saved_bytes needs real tensors: those on the meta device have no memory to tell apart")
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, sum(kept.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def unlearned(model: nn.Module, tolerance: float = 0.0) -> dict[str, str]:
    """Parameters that the last backward pass left without a gradient; call it after ``loss.backward()``.

    Args:
        model: a network whose gradients were None before that backward pass.
        tolerance: a gradient counts as zero where its largest value is at most ``tolerance`` times the largest of all
            gradients; above 0 that also finds gradients that are nothing but rounding.

    Returns:
        parameter name to ``"no gradient"`` (it took no part) or ``"zero"`` (it did, and nothing came back).

    Raises:
        ValueError: if no parameter has a gradient.

    Example:
        >>> net = nn.ModuleDict({"used": nn.Linear(2, 1), "dead": nn.Linear(2, 1)})
        >>> net["used"](torch.ones(1, 2)).sum().backward()
        >>> unlearned(net)
        {'dead.weight': 'no gradient', 'dead.bias': 'no gradient'}
    """
    sizes = {name: None if p.grad is None else p.grad.abs().max().item() for name, p in model.named_parameters()}
    known = [size for size in sizes.values() if size is not None]
    if not known:
        raise ValueError("no parameter has a gradient; run loss.backward() first")
    return {
        name: "no gradient" if size is None else "zero"
        for name, size in sizes.items()
        if size is None or size <= tolerance * max(known)
    }
