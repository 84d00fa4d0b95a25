"""Adversarial images: closed forms of linear models, captum's attacks, and budgets through any first layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.robust import FGSM, PGD
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from payattn.data import ImageSet
from payattn.models import Normalize, YUVLocalContrast, create
from payattn.query import total_variation
from payattn.robust import attention_shift, curve, fgsm, fooling_rate, margin, masking_check, pgd


def pictures(n: int = 6, height: int = 5, width: int = 4, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def linear(classes: int = 4, scale: float = 1.0, pixels: int = 60, seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return net


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(160, 4)
    )


LABELS = torch.tensor([0, 3, 1, 2, 2, 0])


class Contrast(nn.Module):
    """Each image by its own mean and spread."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True).clamp(min=1e-4)


FIRST = {
    "none": nn.Identity(),
    "normalize": Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1)),
    "yuv": YUVLocalContrast(),
    "contrast": Contrast(),
    "batch norm": nn.BatchNorm2d(3, affine=False),
    "in place": nn.Hardtanh(-2, 2, inplace=True),
}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("kind", ["uint8", "float32", "half"])
def test_the_budget_is_in_pixels_whatever_the_first_layer(first: str, kind: str) -> None:
    model = nn.Sequential(FIRST[first], convolutional())
    images = pictures()
    images[:, :, 0] = 0
    images[:, :, 1] = 1
    images = (255 * images).round().to(torch.uint8) if kind == "uint8" else images
    images = images.half() if kind == "half" else images
    pixels = images / 255 if kind == "uint8" else images.float()
    before = images.clone()
    for epsilon in (0.0, 1 / 255, 16 / 255, 1.0):
        for attack in (fgsm, pgd):
            changed = attack(model, images, LABELS, epsilon)
            assert changed.dtype == torch.float32 and changed.shape == images.shape and not changed.requires_grad
            assert (changed - pixels).abs().max() <= epsilon + 1e-6
            assert changed.min() >= 0 and changed.max() <= 1
            if epsilon:
                assert (changed - pixels).abs().max() >= 0.9 * epsilon, "the budget is not used"
    assert torch.equal(images, before)


def test_fgsm_of_a_linear_softmax_model_is_its_closed_form() -> None:
    model, images = linear(), pictures()
    weight, bias = model[1].weight.data.double(), model[1].bias.data.double()
    x = images.double().flatten(1)
    probability = (x @ weight.T + bias).softmax(1)
    slope = (probability - F.one_hot(LABELS, 4)) @ weight
    expected = (x + 0.07 * slope.sign()).clamp(0, 1).view_as(images)
    torch.testing.assert_close(fgsm(model, images, LABELS, 0.07), expected.float())


def test_a_confident_model_is_attacked_as_well() -> None:
    model, images = linear(scale=1000.0), pictures()
    labels = model(images).argmax(1)
    pixels = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(pixels), labels), pixels)
    assert slope.eq(0).all(), "the cross-entropy is not saturated, and so this test tests nothing"
    changed = fgsm(model, images, labels, 0.1)
    second = model(images).topk(2).indices[:, 1]  # so confident that only the nearest rival counts
    toward = (model[1].weight[second] - model[1].weight[labels]).view_as(images)
    torch.testing.assert_close(changed, (images + 0.1 * toward.sign()).clamp(0, 1))


@given(seed=st.integers(0, 999), scale=st.sampled_from([0.1, 1.0, 5.0]))
def test_the_margin_rises_with_the_cross_entropy_and_has_its_direction(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(3, 4, generator=generator)).double().requires_grad_()
    labels = torch.randint(4, (3,), generator=generator)
    loss = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(F.softplus(margin(logits, labels)), loss)
    (one,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (two,) = torch.autograd.grad(margin(logits, labels).sum(), logits)
    assert torch.equal(one.sign(), two.sign())
    torch.testing.assert_close(F.normalize(one), F.normalize(two))


@given(seed=st.integers(0, 99), epsilon=st.sampled_from([0.01, 0.1, 0.6]), start=st.booleans())
def test_pgd_reaches_the_worst_case_of_a_linear_model_of_two_classes(seed: int, epsilon: float, start: bool) -> None:
    model, images = linear(classes=2, seed=seed), pictures(seed=seed)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    toward = model[1].weight[1 - labels] - model[1].weight[labels]
    worst = (images + epsilon * toward.view_as(images).sign()).clamp(0, 1)
    found = pgd(model, images, labels, epsilon, random_start=start)
    torch.testing.assert_close(found, worst)
    torch.testing.assert_close(found, fgsm(model, images, labels, epsilon))


@pytest.mark.filterwarnings("ignore:Input Tensor")
def test_the_attacks_are_captums() -> None:
    model, images = convolutional().eval(), pictures()
    loss = nn.CrossEntropyLoss(reduction="none")
    theirs = FGSM(model, loss, 0, 1).perturb(images, 0.03, LABELS)
    torch.testing.assert_close(fgsm(model, images, LABELS, 0.03), theirs.detach())
    theirs = PGD(model, loss, 0, 1).perturb(images, 0.03, 0.01, 6, LABELS)
    ours = pgd(model, images, LABELS, 0.03, steps=6, step_size=0.01, random_start=False)
    torch.testing.assert_close(ours, theirs.detach())


def test_many_steps_raise_the_loss_more_than_one() -> None:
    model, images = convolutional().eval(), pictures()
    clean, one, many = (
        F.cross_entropy(model(x), LABELS)
        for x in (images, fgsm(model, images, LABELS, 0.1), pgd(model, images, LABELS, 0.1, steps=20))
    )
    assert clean < one <= many


def test_random_starts_repeat_with_their_seed_and_leave_the_global_one_alone() -> None:
    def attack(seed: int | None, **options: Any) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return pgd(convolutional(), pictures(), LABELS, 0.1, 1, step_size=0.0, generator=generator, **options)

    assert torch.equal(attack(0), attack(None)) and not torch.equal(attack(0), attack(1))
    shift = (attack(3) - pictures()).abs()
    assert shift.max() > 0.09 and shift.mean().item() == pytest.approx(0.05, abs=0.01), "not uniform in the budget"
    assert torch.equal(attack(0, random_start=False), pictures())
    model = convolutional()
    state = torch.get_rng_state()
    pgd(model, pictures(), LABELS, 0.1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_the_network_is_left_as_it_was_found(attack) -> None:  # type: ignore[no-untyped-def]
    model = convolutional()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[5].bias.grad = torch.ones(4)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    found = attack(model, pictures(), LABELS, 0.1)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert [p.grad is None for p in model.parameters()] == [True] * 5 + [False] and model[5].bias.grad.eq(1).all()
    torch.testing.assert_close(dict(model.state_dict()), values, rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(found, attack(model.eval(), pictures(), LABELS, 0.1)), "dropout or batch statistics at work"
    with pytest.raises(ValueError, match="classes 0 to 3"):
        attack(model.train(), pictures(), LABELS + 1, 0.1)
    assert model.training and not model[0].weight.requires_grad


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_bad_input_gets_clear_errors(attack) -> None:  # type: ignore[no-untyped-def]
    model, images = convolutional(), pictures()
    for epsilon in (-0.1, 8.0, float("nan")):
        with pytest.raises(ValueError, match=r"epsilon is the largest change.*8 / 255"):
            attack(model, images, LABELS, epsilon)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        attack(model, 255 * images, LABELS, 0.1)
    with pytest.raises(TypeError, match="int64"):
        attack(model, images, LABELS.float(), 0.1)
    with pytest.raises(ValueError, match=r"classes must be \(6,\)"):
        attack(model, images, LABELS[:2], 0.1)
    with pytest.raises(ValueError, match="two classes or more"):
        attack(linear(classes=1), images, LABELS * 0, 0.1)
    broken = linear()
    broken[1].weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        attack(broken, images, LABELS, 0.1)


def test_steps_that_are_none_are_refused() -> None:
    for options in ({"steps": 0}, {"steps": 2.5}, {"step_size": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            pgd(convolutional(), pictures(), LABELS, 0.1, **options)  # type: ignore[arg-type]


def test_the_fooling_rate_counts_changed_decisions_right_or_wrong() -> None:
    before = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 6.0], [0.0, -1.0]])
    after = torch.tensor([[1.0, 2.0], [0.0, 9.0], [7.0, 6.0], [0.0, -1.0]])
    assert fooling_rate(before, after) == 0.5 == fooling_rate(before.argmax(1), after)
    with pytest.raises(ValueError, match="same images, one or more, got 4 and 2"):
        fooling_rate(before, after[:2])
    with pytest.raises(ValueError, match="got 0 and 0"):
        fooling_rate(before[:0], after[:0])
    with pytest.raises(ValueError, match="predicted classes"):
        fooling_rate(before[:, 0], after[:, 0])


def labelled(model: nn.Module, n: int = 60) -> ImageSet:
    images = (255 * pictures(n, seed=5)).round().to(torch.uint8)
    with torch.no_grad():
        labels = model.eval()(images / 255).argmax(1)
    return ImageSet(images, labels, ("a", "b", "c", "d"))


def test_the_curve_is_what_the_attack_does_batch_by_batch() -> None:
    model = convolutional()
    data = labelled(model)
    data = ImageSet(data.images, (data.labels + (torch.arange(60) < 6)) % 4, data.classes)  # 6 decisions are wrong
    found = curve(model, data, [0, 0.02, 0.05], batch_size=25)
    assert [point["epsilon"] for point in found] == [0, 0.02, 0.05]
    assert found[0] == {"epsilon": 0.0, "accuracy": 0.9, "fooled": 0.0}
    for point in found:
        changed = fgsm(model, data.images, data.labels, point["epsilon"])
        clean, after = model(data.images / 255), model(changed)
        assert point["accuracy"] == pytest.approx((after.argmax(1) == data.labels).float().mean().item())
        assert point["fooled"] == pytest.approx(fooling_rate(clean, after))
    assert found[2]["accuracy"] < found[1]["accuracy"] < 0.9


def test_a_transfer_attack_takes_the_gradients_of_the_other_network() -> None:
    model, other = linear(), linear(seed=9)
    data = labelled(model)
    own = curve(model, data, [0.03], "pgd")[0]
    transferred = curve(model, data, [0.03], "pgd", crafted_on=other)[0]
    changed = pgd(other, data.images, data.labels, 0.03)
    assert transferred["accuracy"] == pytest.approx((model(changed).argmax(1) == data.labels).float().mean().item())
    assert own["accuracy"] < transferred["accuracy"]
    assert curve(model, data, [0.03], "pgd", crafted_on=model)[0] == own


def test_a_curve_that_cannot_be_measured_says_so() -> None:
    data = labelled(linear())
    with pytest.raises(ValueError, match="did you mean 'fgsm'"):
        curve(linear(), data, [0.1], "fgms")
    with pytest.raises(ValueError, match="empty"):
        curve(linear(), data.subset([]), [0.1])
    with pytest.raises(ValueError, match="epsilon"):
        curve(linear(), data, [0.1, 8])


class Stairs(nn.Module):
    """Rounds the pixels: the decisions hardly change, and the gradient is zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((30 * images).floor() / 30)


def test_an_honest_network_shows_no_sign_of_masked_gradients() -> None:
    model = linear()
    checked = masking_check(model, labelled(model), 0.02, crafted_on=linear(seed=9))
    assert list(checked) == ["gradient", "noise", "pgd", "large", "transfer"]
    assert all(verdict["passed"] is True for verdict in checked.values())
    assert checked["noise"]["value"] < checked["noise"]["bound"] - 0.1
    assert checked["pgd"]["bound"] == checked["noise"]["value"]
    assert checked["large"]["value"] == 0


def test_a_network_that_rounds_its_input_shows_the_signs() -> None:
    model = linear()
    checked = masking_check(Stairs(model), labelled(Stairs(model)), 0.05, crafted_on=model, batch_size=25)
    assert checked["gradient"]["value"] == 1
    failed = {sign for sign, verdict in checked.items() if verdict["passed"] is False}
    assert failed >= {"gradient", "noise", "large", "transfer"}
    assert checked["large"]["value"] > checked["large"]["bound"]


def test_without_another_network_the_transfer_is_reported_as_not_measured() -> None:
    model = linear()
    verdict = masking_check(model, labelled(model), 0.02)["transfer"]
    assert verdict["passed"] is None and verdict["value"] is None and "give crafted_on=" in verdict["claim"]


def test_slack_decides_what_counts_as_no_difference() -> None:
    model = linear()
    data = labelled(Stairs(model))
    assert not masking_check(Stairs(model), data, 0.05)["noise"]["passed"]
    assert masking_check(Stairs(model), data, 0.05, slack=1.0)["noise"]["passed"]


def test_the_shift_of_attention_is_the_total_variation_of_the_maps() -> None:
    torch.manual_seed(0)
    model = create("vgg-att2-concat-pc", classes=4, width=0.05)
    images = torch.rand(3, 3, 16, 16)
    changed = fgsm(model, images, torch.tensor([0, 1, 2]), 0.1)
    shift = attention_shift(model, images, changed)
    assert model.training
    before, after = (model.eval()(x, return_maps=True)[1] for x in (images, changed))
    assert list(shift) == ["layer10", "layer13"]
    for level, values in shift.items():
        torch.testing.assert_close(values, total_variation(before[level], after[level]))
        assert (values > 0).all() and (values <= 1).all()
    assert all(values.eq(0).all() for values in attention_shift(model, images, images).values())


def test_attention_shift_says_what_does_not_fit() -> None:
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="changed images"):
        attention_shift(create("vgg-att2-concat-pc", width=0.05), images, images[:1])
    with pytest.raises(ValueError, match="has no map"):
        attention_shift(create("vgg", width=0.05), images, images)
    with pytest.raises(TypeError, match="Sequential gives no maps"):
        attention_shift(linear(), images, images)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="maps of layer13 have negative values"):
        attention_shift(create("vgg-gap", width=0.05), images, images)
