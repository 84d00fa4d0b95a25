"""Measure payattn beside the plain PyTorch way, in pairs within one run, so that a busy machine slows both alike.

The plain way: tensors in the order N, C, H, W, float32, eager mode, a DataLoader that transforms one image after the
other. Each pair is measured in turns; what is reported is the median of each side and of the ratio of each turn.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from payattn import create, glyphs
from payattn.cost import saved_bytes
from payattn.data import Augment, ImageSet, batches
from payattn.train import autocast_dtype, fit, pick_device
from payattn.transfer import Distill

NETWORK = "vgg-att2-concat-pc"
BATCH = 128


class OneByOne(Dataset[tuple[Tensor, int]]):
    """The set as the usual tutorial has it: each image is transformed when it is asked for."""

    def __init__(self, data: ImageSet, augment: bool) -> None:
        self.images, self.labels, self.augment = data.images.cpu(), data.labels.tolist(), augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self.images[i].float() / 255
        if self.augment:  # random crop with reflected border, flip
            height, width = image.shape[1:]
            image = nn.functional.pad(image, (4, 4, 4, 4), mode="reflect")
            y, x = (int(v) for v in torch.randint(0, 9, (2,)))
            image = image[:, y : y + height, x : x + width]
            image = image.flip(-1) if torch.rand(()) < 0.5 else image
        return image, self.labels[i]


def clock(work: Callable[[], int], device: torch.device) -> float:
    """Images per second of one piece of work, which returns how many images it handled."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    images = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


Work = Callable[[], int]  # does something and says with how many images


def pair(name: str, ours: Work, plain: Work, device: torch.device, turns: int) -> dict[str, Any]:
    """Measure two ways of doing one thing in turns, after one turn to warm up."""
    clock(ours, device), clock(plain, device)
    speeds = [(clock(ours, device), clock(plain, device)) for _ in range(turns)]
    ratios = sorted(a / b for a, b in speeds)
    return {
        "what": name,
        "ours": statistics.median(a for a, _ in speeds),
        "plain": statistics.median(b for _, b in speeds),
        "ratio": statistics.median(ratios),
        "from": ratios[0],
        "to": ratios[-1],
    }


def stepper(model: nn.Module, images: Tensor, labels: Tensor, steps: int, fast: bool) -> Callable[[], int]:
    """Training steps on one batch: ours with channels_last and autocast where it pays, or plain."""
    device = images.device
    dtype = autocast_dtype("auto", device) if fast else None
    model = copy.deepcopy(model).to(device).train()
    if fast:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    inputs = images.to(memory_format=torch.channels_last) if fast else images.float() / 255

    def work() -> int:
        for _ in range(steps):
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                logits = model(inputs)
            nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return steps * len(labels)

    return work


def reader(passes: Callable[[], Any], device: torch.device) -> Callable[[], int]:
    """Read a set once, batch by batch, onto the device."""

    def work() -> int:
        return sum(len(images.to(device, non_blocking=True)) for images, _ in passes())

    return work


def plain_epoch(model: nn.Module, data: ImageSet, device: torch.device, workers: int) -> Callable[[], int]:
    """One epoch as in the usual tutorial."""
    model = copy.deepcopy(model).to(device).train()
    loader = DataLoader(OneByOne(data, True), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def work() -> int:
        seen = 0
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(labels)
        return seen

    return work


def our_epoch(model: nn.Module, data: ImageSet, device: torch.device) -> Callable[[], int]:
    """One epoch of payattn.fit."""
    model = copy.deepcopy(model)
    augment = Augment(flip="random", pad=4)

    def work() -> int:
        fit(model, data, epochs=1, batch_size=BATCH, lr=0.01, augment=augment, drop_last=True, device=device,
            progress=False)  # fmt: skip
        return len(data) // BATCH * BATCH

    return work


def attention_steps(images: Tensor, labels: Tensor, turns: int) -> Iterator[dict[str, Any]]:
    """Training steps of Attention-92: as printed, and twice as wide, as the best-known re-implementation has it.

    The third pair is recomputation of the attention modules against none: what it costs, and what it keeps.
    """
    labels, device = labels[: len(images)], images.device
    for what, width in (("Attention-92", 1.0), ("Attention-92, 2 wide", 2.0)):
        model = create("attention-92", 10, width=width)
        ours, plain = (stepper(model, images, labels, 1, fast) for fast in (True, False))
        yield pair(what, ours, plain, device, turns)
    once, again = (create("attention-92", 10, recompute=recompute).to(device) for recompute in (False, True))
    ours, plain = (stepper(model, images, labels, 1, True) for model in (again, once))
    row = pair("  its recomputation", ours, plain, device, turns)
    kept = [saved_bytes(functools.partial(net, images), without=net)[1] for net in (again, once)]
    yield row | {"kept": kept[0] / kept[1]}


GROUPS = ("group0", "group1", "group2")
BETA = 1e3


def plain_transfer_loss(teacher: Any, student: Any, inputs: Tensor, labels: Tensor) -> Tensor:
    """Attention transfer as the authors' code writes it: powers and means, the teacher asked for every batch."""

    def at(x: Tensor) -> Tensor:
        return nn.functional.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    with torch.no_grad():
        taught = teacher.stages(inputs)
    learned = student.stages(inputs)
    pooled = torch.relu(student.norm(learned[GROUPS[-1]])).mean(dim=(2, 3))
    loss = nn.functional.cross_entropy(student.head(pooled), labels)
    return loss + BETA * sum((at(learned[g]) - at(taught[g])).pow(2).mean() for g in GROUPS)


def transfer_stepper(
    teacher: nn.Module, student: nn.Module, images: Tensor, labels: Tensor, steps: int, way: str
) -> Callable[[], int]:
    """Training steps of a student on one batch: ``"plain"``, ``"ours"`` as fit does them, or ``"cached"``."""
    device, fast = images.device, way != "plain"
    dtype = autocast_dtype("auto", device) if fast else None
    teacher, student = copy.deepcopy(teacher).to(device).eval(), copy.deepcopy(student).to(device).train()
    inputs = images.float() / 255
    if fast:
        inputs = images.to(memory_format=torch.channels_last)
        teacher, student = (net.to(memory_format=torch.channels_last) for net in (teacher, student))  # type: ignore[call-overload]
    distill = Distill(teacher, student, GROUPS, beta=BETA)
    if way == "cached":
        distill.cache(images)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def work() -> int:
        for _ in range(steps):
            if fast:
                with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                    loss, _ = distill.loss(inputs, labels)
            else:
                loss = plain_transfer_loss(teacher, student, inputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steps * len(labels)

    return work


def transfer_steps(images: Tensor, labels: Tensor, turns: int, steps: int) -> Iterator[dict[str, Any]]:
    """Steps of WRN-16-1 under WRN-16-2 by three groups, images of 32 px: ours, and with the teacher's answers kept."""
    teacher, student = create("wrn-16-2", 10), create("wrn-16-1", 10)
    plain, ours, cached = (
        transfer_stepper(teacher, student, images, labels, steps, way) for way in ("plain", "ours", "cached")
    )
    yield pair("attention transfer", ours, plain, images.device, turns)
    yield pair("  its cache", cached, plain, images.device, turns)


def measure(device: torch.device, turns: int, images: int, width: float, workers: int) -> Iterator[dict[str, Any]]:
    """All pairs, one after the other."""
    data = glyphs(images, seed=0).to(device)
    model = create(NETWORK, 10, width=width)
    first, labels = data.images[:BATCH], data.labels[:BATCH]
    steps = 20 if device.type == "cuda" else 4
    generator = torch.Generator(device).manual_seed(0)
    augment = Augment(flip="random", pad=4)
    loader = DataLoader(OneByOne(data, True), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    ours, plain = (stepper(model, first, labels, steps, fast) for fast in (True, False))
    yield pair("training step", ours, plain, device, turns)
    ours = reader(lambda: batches(data, BATCH, generator=generator, augment=augment), device)
    yield pair("input, flip and crop", ours, reader(lambda: loader, device), device, turns)
    yield pair("one epoch", our_epoch(model, data, device), plain_epoch(model, data, device, workers), device, turns)
    yield from attention_steps(first[: 128 if device.type == "cuda" else 16], labels, min(turns, 3))
    yield from transfer_steps(first, labels, turns, steps // 4)
    speed = [clock(lambda: len(glyphs(images, seed=1, device=str(device))), device) for _ in range(turns)]
    yield {"what": "glyphs drawn", "ours": statistics.median(speed)}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, help="default: 2,000 on a CPU, 20,000 on a GPU")
    parser.add_argument("--width", type=float, help="of the network; default: 1/8 on a CPU, 1 on a GPU")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="of the plain DataLoader")
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    width = options.width or (1.0 if gpu else 0.125)
    name = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; {NETWORK} at width {width:g}, batch {BATCH}; "
          f"plain DataLoader with {options.workers} workers; medians of {options.turns} turns\n")  # fmt: skip
    print(f"{'images per second':22}{'payattn':>12}{'plain':>12}{'ratio':>8}   range")
    rows = []
    for row in measure(device, options.turns, options.images or (20_000 if gpu else 2_000), width, options.workers):
        rows.append(row)
        text = f"{row['what']:22}{row['ours']:12,.0f}"
        if "plain" in row:
            text += f"{row['plain']:12,.0f}{row['ratio']:8.2f}   {row['from']:.2f} to {row['to']:.2f}"
        if "kept" in row:
            text += f"; keeps {row['kept']:.0%} of the bytes"
        print(text, flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"device": name, "torch": torch.__version__, "width": width, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
