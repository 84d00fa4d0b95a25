"""What tools/bench.py sets side by side computes the same thing."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from payattn.data import glyphs
from payattn.models import create
from payattn.transfer import Distill

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import bench


@pytest.mark.parametrize("way", ["ours", "cached", "autocast"])
def test_the_transfer_step_has_the_loss_and_the_gradients_of_the_plain_one(way: str) -> None:
    torch.manual_seed(0)
    teacher, student = create("wrn-16-2", 10, width=0.25).eval(), create("wrn-16-1", 10, width=0.5).train()
    plain = copy.deepcopy(student)
    data = glyphs(12, seed=0)
    inputs = data.images.to(memory_format=torch.channels_last)
    distill = Distill(teacher, student.to(memory_format=torch.channels_last), bench.GROUPS, beta=bench.BETA)
    if way == "cached":
        distill.cache(data)
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        loss, _ = distill.loss(inputs, data.labels)
    expected = bench.plain_transfer_loss(teacher, plain, data.images.float() / 255, data.labels)
    tolerance = 5e-2 if way == "autocast" else 1e-5
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    for each in (loss, expected):
        each.backward()
    for (name, one), two in zip(student.named_parameters(), plain.parameters(), strict=True):
        if way != "autocast":
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("way", ["plain", "ours", "cached"])
def test_a_transfer_step_of_the_bench_trains_the_student_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = create("wrn-10-1", 10, width=0.25), create("wrn-10-1", 10, width=0.125)
    data = glyphs(8, size=16, seed=0)
    copies: list[Any] = []
    deepcopy = copy.deepcopy

    def keep(value: Any, *memo: Any) -> Any:
        made = deepcopy(value, *memo)
        if not memo:
            copies.append(made)
        return made

    monkeypatch.setattr(bench.copy, "deepcopy", keep)
    assert bench.transfer_stepper(teacher, student, data.images, data.labels, 2, way)() == 16
    same = [all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
            for one, two in zip(copies, (teacher, student), strict=True)]  # fmt: skip
    assert same == [True, False]
