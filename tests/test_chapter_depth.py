"""What the chapter "Depth: why (1 + M)" states as equations and no other file tests: fresh networks."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn.check.depth import (
    fusion_backward,
    fusion_gain,
    identity_share,
    resting_mean_square,
    stage_mean_squares,
)
from payattn.models import create
from payattn.residual import SoftMask, naive_fusion, preactivation_unit, residual_fusion

SPREAD = 0.0434  # variance of the sigmoid of a standard normal number
GAIN = {"residual": 2.25 + SPREAD, "naive": 0.25 + SPREAD}
REST = 1 - 1 / math.pi  # the share of ReLU's mean square that is variance
C = 1 / (4 * REST**3)


def started(module: Any) -> Any:
    """With the weights that the networks start from."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_square(x: Tensor) -> float:
    return x.square().mean().item()


@functools.cache
def walked(fusion: str) -> dict[str, tuple[float, float]]:
    """Mean square of the output and squared norm of its gradient, by layer, of a fresh narrow Attention-128."""
    torch.manual_seed(0)
    net: Any = create("attention-128", width=0.25, fusion=fusion).train()
    x, found = net.stem(net.normalize(0.5 + 0.25 * drawn(8, 3, 24, 24))), {}
    for stage in net.stages:
        for name, layer in net.get_submodule(stage).named_children():
            x = found[f"{stage}.{name}"] = layer(x)
    loss = F.cross_entropy(net.head(net.norm(x).mean((2, 3))), torch.arange(8))
    gradients = torch.autograd.grad(loss, list(found.values()))
    return {
        name: (mean_square(x), g.square().sum().item()) for (name, x), g in zip(found.items(), gradients, strict=True)
    }


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_a_fresh_unit_adds_a_quarter_whatever_the_size_of_its_input(scale: float) -> None:
    torch.manual_seed(0)
    unit, x = started(preactivation_unit(128, 128)), drawn(8, 128, 8, 8)
    branch = unit(scale * x) - scale * x
    assert mean_square(branch) == pytest.approx(0.25, rel=0.15)
    torch.testing.assert_close(branch, unit(x) - x, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize(("before", "behind"), [(32, 128), (64, 128), (128, 256)])
def test_a_transition_forgets_the_size_of_what_came_before(before: int, behind: int) -> None:
    torch.manual_seed(0)
    unit = started(preactivation_unit(before, behind, stride=2))
    for scale in (0.1, 10.0):
        assert mean_square(unit(scale * drawn(8, before, 8, 8))) == pytest.approx(before / behind + 0.25, rel=0.2)


def test_a_fresh_mask_has_mean_one_half_and_the_spread_of_the_sigmoid_of_a_normal_number() -> None:
    assert torch.sigmoid(drawn(400_000)).var().item() == pytest.approx(SPREAD, rel=0.01)
    torch.manual_seed(0)
    masks = torch.stack([started(SoftMask(64, 2))(drawn(4, 64, 8, 8, seed=k)) for k in range(8)])
    assert masks.mean().item() == pytest.approx(0.5, abs=0.02)
    assert masks.var().item() == pytest.approx(SPREAD, rel=0.25)


@given(mean=st.floats(0, 1), spread=st.floats(0, 0.5), offset=st.floats(0, 1))
def test_the_gain_is_the_square_of_the_mean_and_the_variance(mean: float, spread: float, offset: float) -> None:
    mask = torch.tensor([mean - spread, mean + spread], dtype=torch.float64)
    assert fusion_gain(mask, offset).item() == pytest.approx((offset + mean) ** 2 + spread**2)


@pytest.mark.parametrize("fusion", GAIN)
def test_the_recursion_predicts_the_signal_of_a_fresh_network(fusion: str) -> None:
    found = walked(fusion)
    for stage, start in (("stage1", 0.5), ("stage2", 0.75), ("stage3", 0.75)):
        assert found[f"{stage}.unit1"][0] == pytest.approx(start, rel=0.35)
        expected = stage_mean_squares(start, GAIN[fusion], 3)
        assert [found[f"{stage}.attention{k}"][0] for k in (1, 2, 3)] == pytest.approx(expected, rel=0.35)


@given(gain=st.floats(0, 0.95), start=st.floats(0, 100))
def test_below_gain_one_the_signal_comes_to_rest(gain: float, start: float) -> None:
    rest = resting_mean_square(gain)
    assert stage_mean_squares(rest, gain, 1)[0] == pytest.approx(rest)
    assert stage_mean_squares(start, gain, 400)[-1] == pytest.approx(rest, rel=1e-4)


def test_the_gradient_grows_in_a_unit_as_the_formula_says() -> None:
    torch.manual_seed(0)
    unit = started(preactivation_unit(256, 256))
    for scale in (0.5, 1.0, 3.0):
        x = (scale * drawn(4, 256, 8, 8)).requires_grad_()
        upstream = drawn(4, 256, 8, 8, seed=1)
        (back,) = torch.autograd.grad((upstream * unit(x)).sum(), x)
        # the input has no mean here, so that only two of the three BatchNorms divide by less than the mean square
        factor = 1 + C * REST / scale**2
        assert (back.square().sum() / upstream.square().sum()).item() == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("fusion", GAIN)
def test_the_gradient_grows_in_a_module_as_the_formula_says(fusion: str) -> None:
    found, logs = walked(fusion), []
    for stage in ("stage2", "stage3"):
        for before, name in zip(("unit1", "attention1", "attention2"), ("attention1", "attention2", "attention3"),
                                strict=True):  # fmt: skip
            (q, back), (_, front) = found[f"{stage}.{before}"], found[f"{stage}.{name}"]
            fused = GAIN[fusion] * (q + 0.75)
            expected = (1 + C / fused) * GAIN[fusion] * (1 + C / (q + 0.5)) * (1 + C / (q + 0.25)) * (1 + C / q)
            logs.append(math.log(back / front / expected))
    assert max(map(abs, logs)) < math.log(2.5)
    assert abs(sum(logs) / len(logs)) < math.log(1.3)


def test_at_the_start_the_naive_gradient_explodes_and_the_residual_one_far_less() -> None:
    ends = {fusion: [list(walked(fusion).values())[k][1] for k in (0, -1)] for fusion in GAIN}
    assert ends["naive"][0] / ends["naive"][1] > 100 * ends["residual"][0] / ends["residual"][1]


@pytest.mark.parametrize("fusion", GAIN)
def test_the_share_of_the_identity_path_is_that_of_the_formula(fusion: str) -> None:
    torch.manual_seed(0)
    net: Any = create("attention-56", width=0.25, fusion=fusion, modules=(0, 0, 5)).train()
    with torch.no_grad():
        x = net.stage2(net.stage1(net.stem(net.normalize(0.5 + 0.25 * drawn(8, 3, 24, 24)))))
        path = x = net.stage3.unit1(x)
        for k, level in enumerate(net.levels, 1):
            parts = net.get_submodule(level).branches(x)
            path, x = path * parts.fused / parts.trunk, parts.output
            expected = identity_share(0.75, GAIN[fusion], k)
            assert mean_square(path) / mean_square(x) == pytest.approx(expected, rel=0.5)
            part = (path * x).mean().item() / mean_square(path)
            assert part == pytest.approx(1, abs=0.8), "what the branches add is at random to the path"


@pytest.mark.parametrize(("fuse", "offset"), [(naive_fusion, 0.0), (residual_fusion, 1.0)])
def test_the_gradients_of_a_fusion_by_hand_are_those_of_autograd(fuse: Any, offset: float) -> None:
    trunk, mask, upstream = (drawn(2, 3, 4, 4, seed=k).double() for k in range(3))
    leaves = [trunk.requires_grad_(), mask.requires_grad_()]
    auto = torch.autograd.grad((upstream * fuse(*leaves)).sum(), leaves)
    for found, expected in zip(fusion_backward(upstream, trunk, mask, offset), auto, strict=True):
        torch.testing.assert_close(found, expected)
