"""One training loop for every network of the course, from any module that maps images to logits.

Read :func:`fit` first: it is the loop.  :class:`Settings` holds every number that shapes a run,
:func:`learning_rate` the schedules, :func:`evaluate` and :func:`maps_of` what is measured afterwards.

The same seed gives the same curve on a CPU, bit for bit, also when the run was killed and resumed (on one
machine, with one number of threads: sums in another order round differently).  Started by ``torchrun`` the same
call trains with several processes, on GPUs or machines, see :mod:`payattn.distributed`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn import checkpoint as files
from payattn import distributed
from payattn.attention import choose, promote
from payattn.data import Augment, Data, batches, share_of
from payattn.maps import device_of, frozen
from payattn.transfer import Objective

Loss = Callable[[Tensor, Tensor], Tensor] | Objective

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("one-cycle", "cosine", "step-halving", "milestones", "steps", "constant")
AMP = ("auto", "bf16", "fp16", "off")
PROGRESS = ("auto", "bar", "lines")


@dataclass(frozen=True)
class Settings:
    """Every choice that shapes a training run; plain data that goes into checkpoints and results.

    Args:
        epochs: passes over the training set.
        batch_size: images per step, of all processes together.
        lr: learning rate at its highest (one-cycle, cosine) or at the start (the other schedules).
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        momentum: of SGD; Adam has its own constants and ignores it.
        dampening: of SGD.  Torch's SGD, which the authors of Learn To Pay Attention used, sets it to the momentum
            by default, and so 1.0 there is about 0.1 here (spec of the paper, 4.2).
        nesterov: Nesterov's form of the momentum; needs dampening 0.
        weight_decay: on all parameters, batch norm and biases too.
        schedule: see :func:`learning_rate`.
        warmup: share of the steps that one-cycle climbs.
        milestones: epoch to factor, for ``schedule="milestones"``, as in ``{60: 0.2, 120: 0.2}``; for ``"steps"`` the
            step, counted from 0 over the run, as in ``{64000: 0.1, 96000: 0.1}``.
        reset_momentum: forget the optimiser's momentum at each milestone, as in the authors' ResNet trainer.
        lr_decay: the learning rate of step t is also divided by 1 + lr_decay * t.
        augment: an :class:`Augment`, or its arguments as a dict; None or ``{}`` changes nothing.
        drop_last: leave out the last batch of an epoch when it is not full, as the authors of Learn To Pay
            Attention do.
        label_smoothing: share of the target spread evenly over the classes.
        seed: of batches, augmentation and dropout.  It does not touch the initial weights.
        amp: ``"auto"`` computes in bfloat16 where the hardware does so natively, see :func:`autocast_dtype`.
        channels_last: keep images and filters in the order N, H, W, C, which convolutions prefer.
        sync_batch_norm: with several processes, normalise by the statistics of the whole batch, so that their number
            does not change the result; False: each by its own slice, and the running statistics of the first process
            are kept.  In one process it changes nothing.

    Raises:
        ValueError: a value outside its range, with the range; an unknown name, with the nearest one.

    Example:
        >>> Settings(epochs=3).to_dict()["epochs"]
        3
        >>> Settings(schedule="onecycle")
        Traceback (most recent call last):
        ValueError: schedule is 'onecycle'; did you mean 'one-cycle'? ...
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    warmup: float = 0.2
    milestones: Mapping[int, float] = field(default_factory=dict)
    reset_momentum: bool = False
    lr_decay: float = 0.0
    augment: Augment | None = None
    drop_last: bool = False
    label_smoothing: float = 0.0
    seed: int = 0
    amp: str = "auto"
    channels_last: bool = True
    sync_batch_norm: bool = True

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("schedule", self.schedule, SCHEDULES)
        choose("amp", self.amp, AMP)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
        for name in ("epochs", "batch_size", "seed"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        for name in ("nesterov", "reset_momentum", "drop_last", "channels_last", "sync_batch_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.nesterov and self.dampening:
            raise ValueError(f"nesterov needs dampening=0, got dampening={self.dampening:g}")
        augment: Any = self.augment
        if isinstance(augment, Mapping):
            object.__setattr__(self, "augment", Augment(**augment) if augment else None)
        elif not isinstance(augment, (Augment, type(None))):
            raise TypeError(f"augment must be an Augment, a dict or None, got {type(augment).__name__}")
        # JSON and TOML know only text as keys
        object.__setattr__(self, "milestones", {int(e): float(f) for e, f in self.milestones.items()})
        if bool(self.milestones) != (self.schedule in ("milestones", "steps")):
            raise ValueError(
                "schedule='milestones' and milestones={epoch: factor} go together, or schedule='steps' and "
                "milestones={step: factor}; one came alone"
            )
        if self.reset_momentum and self.schedule == "steps":
            raise ValueError("reset_momentum works at epochs, with schedule='milestones', not with schedule='steps'")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Build settings from a dict, as read from JSON or TOML; an unknown key is an error, a missing one the default.

        Example:
            >>> Settings.from_dict({"epoch": 3})
            Traceback (most recent call last):
            ValueError: setting is 'epoch'; did you mean 'epochs'? ...
        """
        names = [f.name for f in fields(cls)]
        for name in values:
            choose("setting", name, names)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data: ``Settings.from_dict(s.to_dict()) == s``, also through JSON.

        Example:
            >>> Settings(schedule="milestones", milestones={60: 0.2}).to_dict()["milestones"]
            {'60': 0.2}
        """
        return {**asdict(self), "milestones": {str(e): f for e, f in self.milestones.items()}}


_RANGES = (
    ("epochs", 1, 1e6),
    ("batch_size", 1, 1e7),
    ("lr", 0, 1e6),
    ("momentum", 0, 1),
    ("dampening", 0, 1),
    ("weight_decay", 0, 1e3),
    ("warmup", 0, 1),
    ("lr_decay", 0, 1),
    ("label_smoothing", 0, 1),
    ("seed", 0, 2**63 - 1),
)


def learning_rate(settings: Settings, epoch: int, step: int, steps: int) -> float:
    """The learning rate of one step.

    With t the step counted from 0 over the whole run and T their number, lr the peak, w = warmup * T:

    - ``one-cycle``: lr * min((t + 1) / w, (T - t) / (T - w)), at most lr: up in a straight line, down to nearly 0
    - ``cosine``: lr * (1 + cos(pi t / T)) / 2
    - ``step-halving``: lr * 0.5^floor(epoch / 25), the CIFAR schedule of Learn To Pay Attention
    - ``milestones``: lr * the product of all factors whose epoch has come
    - ``steps``: lr * the product of all factors whose step t has come, as the Residual Attention Network counts
    - ``constant``: lr

    and all of it divided by 1 + lr_decay * t.

    Args:
        settings: names the schedule.
        epoch: from 1; a change at an epoch holds from its first step.
        step: from 0, within the epoch.
        steps: per epoch.

    Source: Learn To Pay Attention, authors' code (spec 4.2, golden check 12).

    Example:
        >>> paper = Settings(lr=1.0, schedule="step-halving", epochs=300)
        >>> [learning_rate(paper, epoch, 0, 390) for epoch in (1, 24, 25, 50)]
        [1.0, 1.0, 0.5, 0.25]
    """
    t, total = (epoch - 1) * steps + step, settings.epochs * steps
    climb = settings.warmup * total
    factor = 1.0
    if settings.schedule == "one-cycle":
        up = (t + 1) / climb if climb > 0 else 1.0
        down = (total - t) / (total - climb) if climb < total else 1.0
        factor = min(up, down, 1.0)
    elif settings.schedule == "cosine":
        factor = (1 + math.cos(math.pi * t / total)) / 2
    elif settings.schedule == "step-halving":
        factor = 0.5 ** (epoch // 25)
    elif settings.schedule == "milestones":
        factor = math.prod(f for start, f in settings.milestones.items() if epoch >= start)
    elif settings.schedule == "steps":
        factor = math.prod(f for start, f in settings.milestones.items() if t >= start)
    return settings.lr * factor / (1 + settings.lr_decay * t)


@dataclass
class History:
    """What happened in a run: one dict per epoch, and the settings.

    Each dict holds ``epoch`` (from 1), ``lr`` (at the first step), ``loss`` and ``train_accuracy`` (means over the
    epoch while the network learns, so with dropout and augmentation), ``test_loss`` and ``test_accuracy`` (after
    the epoch; only with a test set), ``seconds`` (of training alone) and ``images_per_second``.

    Example:
        >>> history = History([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], Settings(epochs=2))
        >>> history.curve("loss"), history.final["epoch"]
        ([2.0, 1.0], 2)
    """

    epochs: list[dict[str, Any]]
    settings: Settings

    @property
    def final(self) -> dict[str, Any]:
        """The last epoch."""
        return self.epochs[-1]

    def curve(self, name: str) -> list[float]:
        """One number per epoch: ``history.curve("test_accuracy")``."""
        choose("curve", name, list(self.final))
        return [epoch[name] for epoch in self.epochs]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"settings": self.settings.to_dict(), "epochs": [dict(epoch) for epoch in self.epochs]}

    def __repr__(self) -> str:
        # no times here: a notebook's output must repeat
        shown = ("loss", "train_accuracy", "test_accuracy")
        numbers = ", ".join(f"{name} {self.final[name]:.4f}" for name in shown if name in self.final)
        return f"History({len(self.epochs)} epochs: {numbers})"


def fit(
    model: nn.Module,
    train: Data,
    test: Data | None = None,
    *,
    settings: Settings | None = None,
    loss: Loss | None = None,
    device: str | torch.device = "auto",
    checkpoint: str | PathLike[str] | None = None,
    progress: str | bool = "auto",
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    **choices: Any,
) -> History:
    """Train a network on a set of images and return what happened.

    Under ``torchrun`` all processes that call it train the network together, and all return the same, see
    :mod:`payattn.distributed`.

    Args:
        model: maps images (N, 3, H, W) to logits (N, K).  It is moved to ``device``, trained in place and left in
            evaluation mode.
        train: images, labels: an :class:`ImageSet`, or a :class:`payattn.data.FileSet` that is read as it is needed.
        test: measured after every epoch where given; it never influences the training.
        settings: see :class:`Settings`.
        loss: from logits (N, K) and labels (N,) to a scalar, the mean over the batch; cross-entropy by default.
            Or an :class:`~payattn.transfer.Objective`, such as ``Distill(teacher, model, layers)``, which needs more.
        device: ``"auto"`` is the CUDA device where there is one, else the CPU.
        checkpoint: a file that is written after every epoch.  If it exists the run continues from it, exactly as
            if it had never stopped; if it belongs to another run that is an error.
        progress: ``"auto"`` is a bar on a terminal and a line per epoch elsewhere; ``"bar"``, ``"lines"``, or
            ``False`` for silence.
        on_epoch: called with the dict of each epoch, see :class:`History`.
        **choices: the fields of :class:`Settings`, as in ``fit(model, train, epochs=5, lr=0.05)``; they take
            precedence over ``settings``.

    Returns:
        the history of all epochs, those before an interruption included.

    Raises:
        ValueError: unusable settings, data or checkpoint; says which.
        ConnectionError: another process of this run has ended.
        FloatingPointError: the loss or a weight stopped being a number; the last good checkpoint stays.

    Example:
        >>> from payattn.data import ImageSet
        >>> images = torch.randint(256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
        >>> data = ImageSet(images, (images[:, 0].float().mean((1, 2)) > 127).long(), ("dark", "bright"))
        >>> class Net(nn.Linear):
        ...     def forward(self, x): return super().forward(x.flatten(1) / 255)
        >>> history = fit(Net(192, 2), data, epochs=2, batch_size=32, progress=False)
        >>> history.curve("epoch")
        [1, 2]
    """
    settings = replace(settings or Settings(), **_known(choices))
    device = pick_device(device)
    if loss is not None and settings.label_smoothing:
        raise ValueError("label_smoothing belongs to the default loss; with loss=... smooth the labels there")
    distributed.start(device)
    train, test = train.to(device), None if test is None else test.to(device)
    steps = _steps(len(train), settings)
    memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
    model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    criterion = loss or nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    dtype = autocast_dtype(settings.amp, device)
    objective = criterion if isinstance(criterion, Objective) else nullcontext()
    with objective, distributed.together(), _own_randomness(device, distributed.own_seed(settings.seed)):
        few = _check(model, train, settings)
        run = Run(model, make_optimizer(model, settings), device, settings)
        identity = _identity(model, train, settings, loss) if checkpoint or distributed.size() > 1 else {}
        distributed.same(identity, _differences)
        if checkpoint:
            run.resume(checkpoint, identity)
        run.network = distributed.parallel(model, few)
        with _Progress(progress, settings.epochs, steps, done=len(run.epochs)) as report:
            for epoch in range(len(run.epochs) + 1, settings.epochs + 1):
                with distributed.synchronised(model, settings.sync_batch_norm):
                    record = _train_epoch(run, train, epoch, steps, criterion, dtype, report)
                distributed.share_buffers(model)
                if test is not None:
                    measured = evaluate(model, test)
                    record |= {"test_loss": measured["loss"], "test_accuracy": measured["accuracy"]}
                _check_finite(model, epoch, steps)
                run.epochs.append(record)
                if checkpoint:
                    run.save(checkpoint, identity)
                report.epoch(record)
                if on_epoch is not None:
                    on_epoch(record)
    model.eval()
    return History(run.epochs, settings)


def _train_epoch(
    run: Run,
    train: Data,
    epoch: int,
    steps: int,
    criterion: Loss,
    dtype: torch.dtype | None,
    report: _Progress,
) -> dict[str, Any]:
    """One pass over the training set.  Nothing is read back from the device until its end."""
    network, settings, processes = run.network.train(), run.settings, distributed.size()
    losses = torch.zeros(steps, device=run.device)
    hits = torch.zeros((), dtype=torch.int64, device=run.device)
    seen, start = 0, time.perf_counter()
    if isinstance(criterion, Objective):
        criterion.start_epoch(epoch, settings.epochs)
    if settings.reset_momentum and epoch in settings.milestones:
        run.optimizer.state.clear()
    drawn = batches(
        train, settings.batch_size, generator=run.generator, augment=settings.augment, drop_last=settings.drop_last,
        share=(distributed.rank(), processes),
    )  # fmt: skip
    for step, (images, labels) in enumerate(drawn):
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(settings, epoch, step, steps)
        if settings.channels_last:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(run.device.type, dtype, enabled=dtype is not None):
            if isinstance(criterion, Objective):
                mean, logits = criterion.loss(images, labels, model=network)
            else:
                logits = network(images)
        if not isinstance(criterion, Objective):
            mean = criterion(promote(logits), labels)
        whole = min(settings.batch_size, len(train) - step * settings.batch_size)
        loss = mean * (len(labels) / whole)  # the part of the mean that lies here
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss * processes).backward()  # of the gradients the processes take the mean
        run.scaler.step(run.optimizer)
        run.scaler.update()
        losses[step] = loss.detach()
        hits += (logits.detach().argmax(1) == labels).sum()
        seen += whole
        report.step()
    distributed.add_up(losses, hits)
    _check_losses(losses, epoch)
    seconds = distributed.from_main(lambda: time.perf_counter() - start)
    return {
        "epoch": epoch,
        "lr": learning_rate(settings, epoch, 0, steps),
        "loss": losses.double().mean().item(),
        "train_accuracy": hits.item() / seen,
        "seconds": seconds,
        "images_per_second": seen / seconds,
    }


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimiser the settings name, over all parameters that learn.

    Example:
        >>> make_optimizer(nn.Linear(2, 1), Settings(lr=1.0, dampening=0.9)).defaults["dampening"]
        0.9
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter that learns (requires_grad is False for all)")
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            momentum=settings.momentum,
            dampening=settings.dampening,
            nesterov=settings.nesterov,
            **common,
        )
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer](parameters, **common)


@dataclass
class Run:
    """All that changes while a network learns: what a checkpoint must hold, and nothing else."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    settings: Settings
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = self.model  # as it is called in training, see distributed.parallel
        self.generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=autocast_dtype(self.settings.amp, self.device) is torch.float16
        )

    def save(self, path: str | PathLike[str], identity: Mapping[str, Any]) -> None:
        """Write everything to one file, atomically; the first process does, for all."""
        optimizer, rest = files.pack_optimizer(self.optimizer)
        random = {"batches": self.generator.get_state()}
        for rank, states in enumerate(distributed.gather(_random_state(self.device))):
            random |= {f"process{rank}.{name}" if rank else name: value for name, value in states.items()}
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer.items()}
        tensors |= {f"rng.{k}": v for k, v in random.items()}
        state = {"optimizer": rest, "scaler": self.scaler.state_dict(), "epochs": self.epochs}
        distributed.from_main(lambda: files.write(path, tensors, {**identity, **state}))

    def resume(self, path: str | PathLike[str], identity: Mapping[str, Any]) -> None:
        """Take everything back from a file, if there is one and it belongs to this run."""
        found = distributed.from_main(lambda: files.read(path) if Path(path).exists() else None)
        if found is None:
            return
        tensors, metadata = found
        before = _plain(Settings.from_dict(metadata["settings"]).to_dict())  # with the defaults of younger fields
        differences = list(_differences({**metadata, "settings": before}, identity))
        if differences:
            raise ValueError(
                f"{path} belongs to another run: {'; '.join(differences)}. "
                "Give this run another checkpoint file, or delete that one to start anew"
            )
        self.model.load_state_dict(files.under("model", tensors))
        files.unpack_optimizer(self.optimizer, files.under("optimizer", tensors), metadata["optimizer"])
        self.scaler.load_state_dict(metadata["scaler"])
        random = files.under("rng", tensors)
        self.generator.set_state(random.pop("batches"))
        rank = distributed.rank()
        random = files.under(f"process{rank}", random) if rank else random
        if random:  # none for a process that was not there before: it keeps the numbers of its seed
            _set_random_state(self.device, random)
        self.epochs = metadata["epochs"]


def _identity(model: nn.Module, train: Data, settings: Settings, loss: Loss | None) -> dict[str, Any]:
    """What must be the same for a checkpoint to belong to a run."""
    name: Any = "cross-entropy" if loss is None else getattr(loss, "__qualname__", type(loss).__qualname__)
    if isinstance(loss, Objective):
        name = loss.identity()
    identity = {
        "settings": settings.to_dict(),
        "data": {"images": len(train), "classes": train.classes, "digest": train.digest()},
        "model": getattr(model, "spec", None),
        "shapes": {name: list(value.shape) for name, value in model.state_dict().items()},
        "loss": name,
    }
    return _plain(identity)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back from JSON: lists for tuples."""
    return dict(json.loads(json.dumps(values)))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key in new:
        before, now = old.get(key), new[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            inside = dict.fromkeys([*before, *now]) | dict(now)
            yield from _differences(before, inside, f"{where}{key} ")
        elif before != now:
            yield f"{where}{key} was {before!r} and is now {now!r}"


def _known(choices: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in choices:
        choose("setting", name, [f.name for f in fields(Settings)])
    return choices


def _steps(images: int, settings: Settings) -> int:
    full, rest = divmod(images, settings.batch_size)
    steps = full + (rest > 0 and not settings.drop_last)
    if steps < 1:
        raise ValueError(f"{images} training images make no batch of {settings.batch_size}; use a smaller batch_size")
    return steps


def _smallest(images: int, settings: Settings) -> int:
    """Images in the smallest batch, of all processes together."""
    rest = images % settings.batch_size
    return rest if rest and not settings.drop_last else settings.batch_size


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the global generators that dropout on this device draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators for a block, and give the caller's states back after it."""
    before = _random_state(device)
    # not torch.manual_seed: it would also seed devices whose state is not given back
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        _set_random_state(device, before)


def _check(model: nn.Module, train: Data, settings: Settings) -> Tensor:
    """Find what cannot work before the first step, where the message can still be clear; returns two images."""
    processes, smallest = distributed.size(), _smallest(len(train), settings)
    norm = any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    parts = 1 if settings.sync_batch_norm else processes
    if norm and smallest // parts == 1 and (smallest < settings.batch_size or processes > 1):
        raise ValueError(
            f"the last of the batches of {settings.batch_size} would hold one image"
            f"{' per process' if parts > 1 else ''}, and batch norm needs two: "
            "use drop_last=True or another batch_size"
        )
    if smallest < processes:
        raise ValueError(
            f"a batch of {smallest} image{'s' if smallest > 1 else ''} is too small for {processes} processes: "
            "use drop_last=True, another batch_size or fewer processes"
        )
    with torch.no_grad():
        images, _ = next(batches(train.subset(slice(0, 2)), 2))
        _check_logits(model.eval()(images), train)
    return images


def _check_logits(logits: Any, data: Data) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must map images (N, 3, H, W) to logits (N, K), got {got}")
    highest = int(data.labels.max())
    if highest >= logits.shape[1]:
        raise ValueError(
            f"the data set {data.name!r} has labels up to {highest} and the model {logits.shape[1]} classes; "
            f"create the model with classes={len(data.classes)}"
        )


_ADVICE = "try a lower lr, a longer warmup, or amp='off'; the model now holds unusable weights"


def _check_losses(losses: Tensor, epoch: int) -> None:
    if not losses.sum().isfinite():
        step = int((~losses.isfinite()).nonzero()[0]) + 1
        raise FloatingPointError(
            f"the loss became {losses[step - 1].item()} in epoch {epoch}, step {step} of {len(losses)}: {_ADVICE}"
        )


def _check_finite(model: nn.Module, epoch: int, steps: int) -> None:
    state = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    finite = torch.stack([t.isfinite().all() for t in state.values()])
    if not finite.all():
        name = list(state)[int((~finite).nonzero()[0])]
        raise FloatingPointError(f"{name} is not finite after epoch {epoch}, step {steps} of {steps}: {_ADVICE}")


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """``"auto"`` is the CUDA device where there is one, else the CPU; anything else is taken as it is.

    Under ``torchrun`` each process has a CUDA device of its own, also for ``"cuda"``.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto" or (str(name) == "cuda" and torch.cuda.is_available()):
        name = distributed.device_here()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no CUDA device; 'payattn doctor' says why")
    return device


@lru_cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The type in which convolutions and matrix products compute; ``None`` leaves everything in float32.

    ``"auto"`` is bfloat16 where it is native: CUDA devices of compute capability 8 and above, x86 CPUs with
    AVX512-BF16 or AMX.  On an EPYC core with AVX512-BF16 a training step of a narrow VGG takes 1.3 times less
    at width 1/8 and twice less at 1/4 and 1/2.  Elsewhere bfloat16 is emulated and loses, so older CUDA devices
    from capability 7 get float16 with a scaled loss, and the rest float32.

    Example:
        >>> autocast_dtype("off", torch.device("cpu")) is None
        True
    """
    if amp == "auto":
        amp = "off"
        if device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)[0]
            amp = "bf16" if capability >= 8 else "fp16" if capability == 7 else "off"
        elif device.type == "cpu" and _cpu_flags() & {"avx512_bf16", "amx_bf16"}:
            amp = "bf16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def evaluate(model: nn.Module, data: Data, batch_size: int | None = None) -> dict[str, Any]:
    """Mean cross-entropy and accuracy of a network on a set, in evaluation mode and full precision.

    Several processes share the work and all get the whole result, so all must call it.

    Args:
        model: maps images (N, 3, H, W) to logits (N, K); its mode is left as found.
        data: images and labels; batches are moved to where the model is.
        batch_size: images at a time; it does not change the result beyond rounding.  500 where none is given, and
            100 of a set that is read from files.

    Returns:
        ``loss`` (nats), ``accuracy`` (0 to 1) and ``n`` (images).

    Example:
        >>> from payattn.data import ImageSet
        >>> class One(nn.Module):
        ...     def forward(self, x): return torch.tensor([[0.0, 9.0]]).expand(len(x), 2)
        >>> data = ImageSet(torch.zeros(4, 3, 8, 8).byte(), torch.tensor([1, 1, 1, 0]), ("a", "b"))
        >>> evaluate(One(), data)["accuracy"]
        0.75
    """
    if not len(data):
        raise ValueError(f"the data set {data.name!r} is empty, so nothing can be measured on it")
    device = device_of(model)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    hits = torch.zeros((), dtype=torch.int64, device=device)
    with frozen(model, gradients=False):
        first, _ = next(batches(data.subset(slice(0, 1)), 1))
        _check_logits(model(first.to(device)), data)
        own = data.subset(share_of(len(data), distributed.rank(), distributed.size()))
        for images, labels in batches(own, batch_size or data.at_once):
            logits, labels = promote(model(images.to(device))), labels.to(device)
            loss += F.cross_entropy(logits, labels, reduction="sum").double()
            hits += (logits.argmax(1) == labels).sum()
        distributed.add_up(loss, hits)
    return {"loss": loss.item() / len(data), "accuracy": hits.item() / len(data), "n": len(data)}


def maps_of(model: nn.Module, data: Data, batch_size: int | None = None) -> dict[str, Tensor]:
    """The attention maps of a network over a set, in evaluation mode.

    Args:
        model: called as ``model(images, return_maps=True)``, it returns logits and a dict of maps.
        data: the images.
        batch_size: images at a time; 500 where none is given, and 100 of a set that is read from files.

    Returns:
        level name to (N, H, W), float32, on the CPU; an empty dict for a network without maps.

    Example:
        >>> from payattn.data import ImageSet
        >>> class Net(nn.Module):
        ...     def forward(self, x, return_maps=False):
        ...         return x.float().mean((2, 3)), {"layer1": x.float().mean(1)}
        >>> data = ImageSet(torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long(), ("a",))
        >>> maps_of(Net(), data)["layer1"].shape
        torch.Size([4, 8, 8])
    """
    device, parts = device_of(model), dict[str, list[Tensor]]()
    with frozen(model, gradients=False):
        for images, _ in batches(data, batch_size or data.at_once):
            _, maps = model(images.to(device), return_maps=True)
            for level, values in maps.items():
                parts.setdefault(level, []).append(values.float().cpu())
    return {level: torch.cat(values) for level, values in parts.items()}


class _Progress(AbstractContextManager["_Progress"]):
    """A bar over all steps on a terminal, one line per epoch elsewhere, or silence."""

    def __init__(self, kind: str | bool, epochs: int, steps: int, done: int) -> None:
        if kind is not False:
            kind = choose("progress", "auto" if kind is True else kind, PROGRESS)
        if not distributed.is_main():
            kind = False
        if kind == "auto":
            kind = "bar" if sys.stderr.isatty() else "lines"
        self.kind = kind
        self.epochs, self.bar = epochs, None
        if self.kind == "bar":
            from tqdm import tqdm

            self.bar = tqdm(total=epochs * steps, initial=done * steps, unit="step", dynamic_ncols=True)
        if done and self.kind == "lines":
            print(f"continuing after epoch {done} of {epochs}")

    def step(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def epoch(self, record: Mapping[str, Any]) -> None:
        # no times: the output of a notebook must repeat
        numbers = f"lr {record['lr']:.4g}  loss {record['loss']:.4f}  train {record['train_accuracy']:.4f}"
        if "test_accuracy" in record:
            numbers += f"  test {record['test_accuracy']:.4f}"
        line = f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}  {numbers}"
        if self.bar is not None:
            self.bar.write(line)
        elif self.kind:
            print(line, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
