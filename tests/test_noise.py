"""Wrong labels: the matrix, the draw, the losses, the parts of the gradient, the gain of a mask, what is remembered."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn import measures, noise
from payattn.data import ImageSet, glyphs, load, noise_matrix, noisy_labels
from payattn.models import create

RATES = st.floats(0.0, 1.0)


def posteriors(n: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


# ------------------------------------------------------------------------------------------------ matrix and draw


def test_golden_15_rows_of_the_matrix_sum_to_one_and_hold_the_ratio_and_the_rest_evenly() -> None:
    matrix = noise_matrix(10, 0.3)
    assert matrix.sum(1).tolist() == pytest.approx([1.0] * 10)
    assert matrix.diagonal().tolist() == [0.3] * 10
    for level, entry in ((0.1, 0.01111), (0.3, 0.03333), (0.5, 0.05556), (0.7, 0.07778)):
        assert noise_matrix(10, 1 - level)[2, 7].item() == pytest.approx(entry, abs=5e-6)


@pytest.mark.parametrize("arguments", [(1, 0.5), (3, 1.2), (3, -0.1), (3, float("nan"))])
def test_a_matrix_of_one_class_or_a_ratio_that_is_no_share_is_an_error(arguments: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match="2 or more classes"):
        noise_matrix(*arguments)


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5, 0.7])
def test_golden_15_so_many_of_50000_labels_change_and_none_into_itself(level: float) -> None:
    labels = torch.arange(50_000) % 10
    drawn = noisy_labels(labels, 10, level, 0)
    assert drawn is not None
    changed = int((drawn != labels).sum())
    assert abs(changed - 50_000 * level) < 4 * math.sqrt(50_000 * level * (1 - level))
    per_class = torch.stack([torch.bincount(drawn[labels == k], minlength=10) for k in range(10)]).double() / 5000
    assert (per_class - noise_matrix(10, 1 - level)).abs().max() < 0.03
    assert torch.equal(drawn, noisy_labels(labels, 10, level, 0))  # type: ignore[arg-type]
    assert not torch.equal(drawn, noisy_labels(labels, 10, level, 1))  # type: ignore[arg-type]


def test_golden_15_the_test_labels_stay_and_the_training_images_too() -> None:
    (clean, test), (noisy, same) = (load("glyphs", n_train=300, n_test=60, size=8, label_noise=q, device="cpu")
                                    for q in (0.0, 0.7))  # fmt: skip
    assert torch.equal(test.labels, same.labels)
    assert same.clean_labels is None
    assert torch.equal(clean.images, noisy.images)
    assert noisy.clean_labels is not None
    assert torch.equal(noisy.clean_labels, clean.labels)


# ------------------------------------------------------------------------------------------- what can be learned


@given(clean=RATES, seed=st.integers(0, 50))
def test_the_posterior_of_noisy_labels_differs_by_the_clean_one_times_one_factor(clean: float, seed: int) -> None:
    p = posteriors(3, 5, seed)
    q = p @ noise_matrix(5, clean)
    factor = (5 * clean - 1) / 4
    torch.testing.assert_close(q[:, :1] - q, factor * (p[:, :1] - p))
    if factor > 1e-6:
        assert torch.equal(q.argmax(1), p.argmax(1))
    elif factor < -1e-6:
        assert torch.equal(q.argmin(1), p.argmax(1))


@given(clean=st.floats(0.01, 0.99))
def test_the_expected_loss_of_a_known_class_is_smallest_at_the_row_and_is_its_entropy_there(clean: float) -> None:
    row = noise_matrix(10, clean)[0]
    floor = -clean * math.log(clean) - (1 - clean) * math.log((1 - clean) / 9)
    assert -(row @ row.log()).item() == pytest.approx(floor)
    for seed in range(5):
        assert -(row @ posteriors(1, 10, seed)[0].log()).item() >= floor


@given(clean=RATES, classes=st.integers(2, 12))
def test_the_expected_loss_is_that_of_smoothed_labels(clean: float, classes: int) -> None:
    logits = posteriors(1, classes).log()
    expected = -(noise_matrix(classes, clean)[0] @ logits.log_softmax(1)[0])
    share = classes * (1 - clean) / (classes - 1)
    uniform = -logits.log_softmax(1).mean()
    torch.testing.assert_close(expected, (1 - share) * F.cross_entropy(logits, torch.tensor([0])) + share * uniform)
    if share <= 1:
        smooth = F.cross_entropy(logits, torch.tensor([0]), label_smoothing=share)
        torch.testing.assert_close(expected, smooth)


@given(clean=RATES, right=st.integers(0, 20))
def test_accuracy_on_unseen_noisy_labels_is_a_straight_line_in_the_true_accuracy(clean: float, right: int) -> None:
    true, answers = torch.zeros(20).long(), (torch.arange(20) >= right).long() * (1 + torch.arange(20) % 4)
    expected = noise_matrix(5, clean)[true, answers].mean().item()  # chance that the given label is the answer
    factor = (5 * clean - 1) / 4
    assert expected == pytest.approx((1 - clean) / 4 + factor * right / 20)


# --------------------------------------------------------------------------------------------- forward correction


def test_forward_correction_by_hand_and_without_noise() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # p = (3/4, 1/4)
    matrix = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)  # q = (0.7, 0.3)
    for label, q in ((0, 0.7), (1, 0.3)):
        assert noise.forward_loss(logits, torch.tensor([label]), matrix).item() == pytest.approx(-math.log(q))
    for label in (0, 1):
        one = torch.tensor([label])
        torch.testing.assert_close(noise.forward_loss(logits, one, torch.eye(2)), F.cross_entropy(logits, one))


@given(seed=st.integers(0, 50))
def test_the_minimum_of_the_expected_corrected_loss_is_the_clean_posterior(seed: int) -> None:
    matrix = posteriors(4, 4, seed) * 0.4 + 0.6 * torch.eye(4)
    p = posteriors(1, 4, seed + 1)
    logits = p.log().requires_grad_()
    expected = sum((p @ matrix)[0, j] * noise.forward_loss(logits, torch.tensor([j]), matrix) for j in range(4))
    (slope,) = torch.autograd.grad(expected, logits)  # type: ignore[arg-type]
    assert slope.abs().max() < 1e-10
    (plain,) = torch.autograd.grad(-((p @ matrix) * logits.log_softmax(1)).sum(), logits)
    assert plain.abs().max() > 1e-3


def test_forward_correction_stays_finite_and_has_the_right_gradient() -> None:
    logits = torch.tensor([[1000.0, -1000.0]], requires_grad=True)
    loss = noise.forward_loss(logits, torch.tensor([1]), torch.eye(2))
    assert loss.isfinite()
    wide = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(lambda z: noise.forward_loss(z, labels, noise_matrix(3, 0.6)), (wide,))
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        noise.forward_loss(wide, labels, torch.eye(2))


# -------------------------------------------------------------------------------------------------- gradient parts


def small_net(classes: int = 3) -> Any:
    torch.manual_seed(0)
    return create("attention-56", classes, width=0.125, modules=(1, 0, 0), units=(1, 1, 1))


def test_the_parts_add_up_to_the_gradient_also_with_batch_statistics() -> None:
    net = small_net().double().train()
    images = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    given_labels, true = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 0, 0, 2, 2])
    clean, wrong = noise.gradient_parts(net, images, given_labels, true)
    F.cross_entropy(net(images), given_labels).backward()
    whole = torch.cat([p.grad.flatten() for p in net.parameters()])
    torch.testing.assert_close(clean + wrong, whole)
    assert wrong.norm() > 0
    none, all_of_it = noise.gradient_parts(net, images, given_labels, (given_labels + 1) % 3)
    assert none.norm() == 0
    torch.testing.assert_close(all_of_it, whole)


@given(clean=RATES, classes=st.integers(2, 12))
def test_at_uniform_probabilities_wrong_labels_pull_back_by_their_share(clean: float, classes: int) -> None:
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    one_hot = torch.eye(classes, dtype=torch.float64)
    row = noise_matrix(classes, clean)[0]
    from_clean = clean * (uniform - one_hot[0])
    from_wrong = sum((row[j] * (uniform - one_hot[j]) for j in range(1, classes)), torch.zeros(classes))
    torch.testing.assert_close(from_wrong, -(1 - clean) / (classes - 1) * (uniform - one_hot[0]))
    torch.testing.assert_close(from_clean + from_wrong, (classes * clean - 1) / (classes - 1) * (uniform - one_hot[0]))


@given(clean=st.floats(0.01, 0.99), classes=st.integers(2, 12))
def test_at_rest_the_parts_are_equal_and_opposite(clean: float, classes: int) -> None:
    row = noise_matrix(classes, clean)[0]
    errors = row - torch.eye(classes, dtype=torch.float64)
    torch.testing.assert_close(clean * errors[0], -(row[1:, None] * errors[1:]).sum(0))


# -------------------------------------------------------------------------------------------------------- the gain


def test_the_gain_is_the_ratio_of_the_lengths_that_autograd_gives_before_and_after_the_mask() -> None:
    net = small_net().eval()
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    found = noise.filter_gains(net, images, labels)["stage1.attention1"]
    kept: dict[str, Tensor] = {}
    module = net.get_submodule("stage1.attention1")
    hooks = [module.trunk.register_forward_hook(lambda m, i, o: kept.__setitem__("T", o)),
             module.after.register_forward_pre_hook(lambda m, i: kept.__setitem__("H", i[0]))]  # fmt: skip
    loss = F.cross_entropy(net(images), labels, reduction="sum")
    (g,) = torch.autograd.grad(loss, kept["H"], retain_graph=True)
    (through,) = torch.autograd.grad(kept["H"], kept["T"], g, retain_graph=True)  # the mask does not depend on T
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found["gain"], through.flatten(1).norm(dim=1) / g.flatten(1).norm(dim=1))


def test_the_gain_lies_between_one_and_two_and_the_factors_differ_by_less_than_two() -> None:
    found = noise.filter_gains(small_net(), torch.rand(5, 3, 9, 12), torch.arange(5) % 3)["stage1.attention1"]
    for key in ("gain", "flat", "contrast"):
        assert (found[key] >= 1).all()
        assert (found[key] <= 2).all()
    assert noise.filter_gains(nn.Linear(2, 2), torch.rand(1, 3, 2, 2), torch.zeros(1).long()) == {}


def test_a_naive_module_multiplies_the_gradient_by_the_mask_alone() -> None:
    net = small_net().eval()
    images, labels = torch.rand(3, 3, 16, 16), torch.arange(3)
    with torch.no_grad():
        net.get_submodule("stage1.attention1.soft_mask.head.4").weight.zero_()  # M is one half everywhere
    assert noise.filter_gains(net, images, labels)["stage1.attention1"]["gain"].tolist() == pytest.approx([1.5] * 3)
    net.get_submodule("stage1.attention1").fusion = "naive"
    found = noise.filter_gains(net, images, labels)["stage1.attention1"]
    assert found["gain"].tolist() == found["flat"].tolist() == pytest.approx([0.5] * 3)


def test_the_mask_of_an_image_does_not_know_its_label() -> None:
    images = torch.rand(3, 3, 16, 16)
    one, other = (noise.filter_gains(small_net(), images, labels)["stage1.attention1"]
                  for labels in (torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])))  # fmt: skip
    assert torch.equal(one["flat"], other["flat"])
    assert torch.equal(one["contrast"], other["contrast"])
    assert not torch.equal(one["gain"], other["gain"])


# -------------------------------------------------------------------------------------------- what is remembered


class Lookup(nn.Module):
    """Answers what is written in the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return F.one_hot(images[:, 0, 0, 0].long(), 4).float()


def written(answers: Tensor, given_labels: Tensor, true: Tensor | None) -> ImageSet:
    images = answers.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).byte()
    return ImageSet(images, given_labels, tuple("abcd"), clean_labels=true)


def test_memorised_counts_the_three_kinds_of_answers() -> None:
    given_labels, true = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1, 1, 2, 2])
    found = noise.memorised(Lookup(), written(torch.tensor([0, 3, 2, 2, 2]), given_labels, true))
    assert found == pytest.approx({"clean": 1 / 2, "wrong": 1 / 3, "true": 2 / 3})


def test_memorised_needs_labels_of_both_kinds() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="label_noise"):
        noise.memorised(Lookup(), written(labels, labels, None))
    with pytest.raises(ValueError, match="some true and some wrong"):
        noise.memorised(Lookup(), written(labels, labels, labels))


def test_the_measure_of_a_recipe_returns_numbers_by_module_and_none_without_modules() -> None:
    train = glyphs(60, size=16, classes=3, label_noise=0.5)
    found = measures.wrong_labels(small_net(), {"here": (train, train)}, {"n": 20}, lambda name: nn.Identity())["here"]
    assert set(found) == {"memorised", "parts", "gain"}
    assert set(found["gain"]["stage1.attention1"]) == {"clean", "wrong", "righted", "flat", "contrast"}
    assert -1 <= found["parts"]["cosine"] <= 1
    plain = create("rn-164", 3, depth=20, width=0.25)
    assert measures.wrong_labels(plain, {"here": (train, train)}, {"n": 20}, lambda name: plain)["here"]["gain"] == {}
    with pytest.raises(ValueError, match="clean_labels"):
        measures.wrong_labels(plain, {"here": (glyphs(6, size=16, classes=3),) * 2}, {}, lambda name: plain)
