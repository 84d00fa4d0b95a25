"""What the chapter "Scale" states as equations and no other file tests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from payattn import cost
from payattn.check.scale import combined_gradient, combined_variance, convolution_work, pca_jitter, recompute_peak
from payattn.data.augment import jittered
from payattn.models import create
from payattn.residual import AttentionModule, MaskScale, preactivation_unit
from payattn.train import Settings, learning_rate, make_optimizer


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(c: int) -> int:
    return 17 * c * c // 16 + 3 * c


def transition(a: int, b: int) -> int:
    inside = b // 4
    return a * inside + 9 * inside**2 + inside * b + a * b + 2 * (a + 2 * inside)


def module(c: int, d: int) -> int:
    return (3 + 3 * d) * unit(c) + 2 * c * c + 4 * c


@pytest.mark.parametrize(
    ("name", "modules"), [("attention-56-imagenet", (1, 1, 1)), ("attention-92-imagenet", (1, 2, 3))]
)
def test_the_imagenet_networks_have_the_closed_form(name: str, modules: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        net = create(name, 1000)
    widths = (64, 256, 512, 1024, 2048)
    turns = sum(transition(a, b) for a, b in pairwise(widths))
    inside = sum(m * module(c, d) for m, c, d in zip(modules, widths[1:], (3, 2, 1), strict=False))
    assert cost.parameters(net) == 9_408 + 128 + turns + inside + 2 * unit(2048) + 4_096 + 2_049_000


@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_an_hourglass_with_one_unit_each_way_costs_one_minus_two_over_four_to_the_depth(d: int) -> None:
    with torch.device("meta"):
        body, one = MaskScale(16, d), preactivation_unit(16, 16)
    work = [cost.multiply_adds(part, 16, 16, 16) for part in (body, one)]
    assert work[0] / work[1] == 1 - 2 / 4**d
    with torch.device("meta"):
        work[0] = cost.multiply_adds(MaskScale(16, d, r=3), 16, 16, 16)
    assert work[0] / work[1] == sum((6 + (k < d)) / 4**k for k in range(1, d + 1))


@settings(max_examples=30, deadline=None)
@given(
    c_in=st.integers(1, 4), c_out=st.integers(1, 4), kernel=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3),
    groups=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9),
)  # fmt: skip
def test_the_work_of_a_convolution_is_counted_at_its_outputs(
    c_in: int, c_out: int, kernel: int, stride: int, groups: int, height: int, width: int
) -> None:
    c_in, c_out = c_in * groups, c_out * groups
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, device="meta")
    found = cost.layers(layer, c_in, height, width)[""]
    assert found.multiply_adds == convolution_work(c_in, c_out, kernel, stride, groups, height, width)
    assert found.parameters - c_out == c_out * c_in // groups * kernel**2


def test_a_step_holds_weights_gradients_and_velocities() -> None:
    net = create("attention-56", 5, width=0.125)
    optimizer = make_optimizer(net, Settings(lr=0.1, momentum=0.9))
    F.cross_entropy(net(torch.rand(4, 3, 16, 16)), torch.arange(4)).backward()
    optimizer.step()
    held: list[Tensor] = list(net.parameters())
    held += [p.grad for p in net.parameters() if p.grad is not None]
    held += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert sum(t.numel() * t.element_size() for t in held) == 4 * 3 * cost.parameters(net)


def kept(call: Callable[[], Tensor], *modules: nn.Module) -> int:
    return cost.saved_bytes(call, nn.ModuleList(modules))[1]


def test_recomputed_modules_keep_their_inputs_and_the_peak_is_bounded_by_the_largest() -> None:
    from payattn.residual import recomputed

    torch.manual_seed(0)
    x = torch.rand(2, 8, 12, 12, requires_grad=True)
    first, turn, second = AttentionModule(8, 3), preactivation_unit(8, 16, 2), AttentionModule(16, 1)
    every = kept(lambda: second(turn(first(x))), first, turn, second)
    inputs_only = kept(lambda: recomputed(second, turn(recomputed(first, x).output)).output, first, turn, second)
    y = turn(first(x))  # type: ignore[arg-type]
    insides = [kept(lambda: first(x), first), kept(lambda: second(y), second)]
    inputs = [4 * x.numel(), 4 * y.numel()]
    between = first(x).detach().requires_grad_()  # type: ignore[union-attr]
    outside = kept(lambda: turn(between), turn)
    assert inputs_only == outside + sum(inputs)
    assert recompute_peak(outside, inputs, insides) == inputs_only + max(insides) < every + inputs[0] + inputs[1]


@pytest.mark.parametrize("momentum", [0.1, 0.5])
def test_running_statistics_that_are_updated_twice_move_as_with_another_momentum(momentum: float) -> None:
    norm, x = nn.BatchNorm2d(3, momentum=momentum).double(), drawn(0, 4, 3, 5, 5)
    norm(x), norm(x)
    mean = x.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, (1 - (1 - momentum) ** 2) * mean)


def test_a_pointwise_convolution_has_an_intensity_of_a_fifth_of_its_channels_and_a_norm_of_zero() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16))
    convolution, norm = cost.layers(net, 64, 30, 20).values()
    assert convolution.multiply_adds / (convolution.read + convolution.written) == 64 / 5
    assert norm.multiply_adds == 0
    assert norm.read == norm.written == 16 * 600


def test_the_imagenet_schedule_in_iterations_is_that_of_epochs_with_a_batch_of_256() -> None:
    drops = {200_000: 0.1, 400_000: 0.1, 500_000: 0.1}
    chosen, steps = Settings(lr=0.1, schedule="steps", milestones=drops, epochs=106, batch_size=256), 1_281_167 // 256
    found = {
        t: learning_rate(chosen, 1 + t // steps, t % steps, steps)
        for t in (0, 199_999, 200_000, 399_999, 400_000, 499_999, 500_000, 529_999)
    }
    assert list(found.values()) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert [round(t * 256 / 1_281_167) for t in drops] == [40, 80, 100]
    assert round(530_000 * 256 / 1_281_167, 1) == 105.9


def test_colours_move_along_the_axes_by_hand() -> None:
    image = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    vectors = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    moved = pca_jitter(image, vectors, torch.tensor([0.2175, 0.0188, 0.0045]), torch.tensor([[0.1, 0.0, 0.0]]))
    assert moved.flatten().tolist() == pytest.approx([0.48766, 0.38737, 0.28731], abs=1e-5)
    torch.testing.assert_close(jittered(image, torch.tensor([[0.1, 0.0, 0.0]])), moved)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_parts_of_a_batch_give_its_gradient_and_its_variance(counts: list[int], seed: int) -> None:
    x, y, weight = drawn(seed, sum(counts), 4), drawn(seed + 1, sum(counts)), drawn(seed + 2, 4)

    def gradient(rows: Tensor, targets: Tensor) -> Tensor:
        w = weight.clone().requires_grad_()
        (rows @ w - targets).square().mean().backward()
        assert w.grad is not None
        return w.grad

    parts = list(zip(x.split(counts), y.split(counts), strict=True))
    sizes = torch.tensor(counts, dtype=torch.float64)
    torch.testing.assert_close(combined_gradient(torch.stack([gradient(*p) for p in parts]), sizes), gradient(x, y))
    means, variances = (torch.stack([f(rows) for rows, _ in parts]) for f in (
        lambda rows: rows.mean(0), lambda rows: rows.var(0, correction=0)))  # fmt: skip
    torch.testing.assert_close(combined_variance(means, variances, sizes), x.var(0, correction=0))


def test_a_plain_average_of_uneven_parts_is_not_the_gradient() -> None:
    gradients = torch.tensor([[1.5], [6.0]])
    assert combined_gradient(gradients, torch.tensor([2.0, 1.0])).item() == 3.0
    assert gradients.mean().item() == 3.75
