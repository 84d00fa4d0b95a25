"""Exercises of the chapter "Adversarial images"."""

from __future__ import annotations

import torch
from torch import Tensor

from payattn.check import Exercise, numbers

# --------------------------------------------------------------------------------------------------- one step


def fgsm_step(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """Return images in [0, 1] after one step of epsilon by the sign of the gradient of the loss."""
    return (images + epsilon * gradient.sign()).clamp(0, 1)


def _step_without_sign(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return (images + epsilon * gradient).clamp(0, 1)


def _step_downhill(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return (images - epsilon * gradient.sign()).clamp(0, 1)


def _step_without_clip(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return images + epsilon * gradient.sign()


def _step_of_zero_is_one(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return (images + epsilon * torch.where(gradient >= 0, 1.0, -1.0)).clamp(0, 1)


def _step_along(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return (images + epsilon * gradient / gradient.abs().amax()).clamp(0, 1)


def _step_clipped_change(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return images + (epsilon * gradient.sign()).clamp(0, 1)


PICTURE = torch.tensor([[[[0.50, 0.02]], [[0.98, 0.40]], [[0.30, 0.70]]]])
SLOPE = torch.tensor([[[[2.0, -1.0]], [[0.5, 0.0]], [[-3.0, 4.0]]]])

FGSM_STEP = Exercise(
    [(PICTURE, SLOPE, 0.05)],
    fgsm_step,
    {
        "no sign": ("The sign is missing: the size of the gradient must not matter, only its direction per pixel.",
                    _step_without_sign),
        "downhill": ("This lowers the loss. An attacker adds the step, a training loop subtracts it.", _step_downhill),
        "no clip": ("Some pixels leave [0, 1]. Clip the image after the step: nobody can show such a pixel.",
                    _step_without_clip),
        "zero": ("Where the gradient is zero the pixel must stay: sign(0) is 0.", _step_of_zero_is_one),
        "along": ("This goes along the gradient. Under a bound on every pixel each one should move by all it may.",
                  _step_along),
        "clipped change": ("The change is clipped to [0, 1], so nothing gets darker. Clip the image, not the change.",
                           _step_clipped_change),
    },
    passed="every pixel with a slope moves by epsilon, and none leaves [0, 1].",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- units of epsilon


def step_in_pixels(epsilon: float, std: Tensor) -> Tensor:
    """Return per channel what a step of epsilon behind ``(x - mean) / std`` is in pixels of [0, 1]."""
    return epsilon * std


def _pixels_divided(epsilon: float, std: Tensor) -> Tensor:
    return epsilon / std


def _pixels_same(epsilon: float, std: Tensor) -> Tensor:
    return torch.full_like(std, epsilon)


def _pixels_mean(epsilon: float, std: Tensor) -> Tensor:
    return torch.full_like(std, epsilon * std.mean().item())


def _pixels_levels(epsilon: float, std: Tensor) -> Tensor:
    return 255 * epsilon * std


STEP_IN_PIXELS = Exercise(
    [(8 / 255, torch.tensor([0.25, 0.20, 0.10])), (0.5, torch.tensor([0.3, 0.4, 0.5]))],
    step_in_pixels,
    {
        "divided": ("The other way round: dividing by std made the values larger, so going back multiplies by it.",
                    _pixels_divided),
        "same": ("That would be right with std = 1 only. Behind the normalisation one unit is std of a pixel.",
                 _pixels_same),
        "mean": ("Each channel has its own std, and so its own step in pixels.", _pixels_mean),
        "levels": ("That is in grey levels of 0..255. Pixels here are in [0, 1].", _pixels_levels),
    },
    passed="one number, three budgets: say in which space epsilon is meant.",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- projection


def project_to_budget(changed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Return the closest image to ``changed`` that is in [0, 1] and at most epsilon from ``images`` at every pixel."""
    return changed.clamp((images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1))


def _project_range_only(changed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    return changed.clamp(0, 1)


def _project_budget_only(changed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    return changed.clamp(images - epsilon, images + epsilon)


def _project_change_only(changed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    return (changed - images).clamp(-epsilon, epsilon)


def _project_scaled(changed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    change = changed - images
    return (images + change * (epsilon / change.abs().amax().clamp_min(epsilon))).clamp(0, 1)


def _project_around_zero(changed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    return changed.clamp(-epsilon, epsilon)


def _project_signs(changed: Tensor, images: Tensor, epsilon: float) -> Tensor:
    return (images + epsilon * (changed - images).sign()).clamp(0, 1)


PROJECT = Exercise(
    [(torch.tensor([0.45, 0.70, -0.05, 1.08, 0.30]), torch.tensor([0.50, 0.50, 0.02, 0.99, 0.30]), 0.1)],
    project_to_budget,
    {
        "range only": ("In [0, 1], but a pixel may now be further than epsilon from the image.", _project_range_only),
        "budget only": ("Within epsilon, but some pixels leave [0, 1]. Both bounds count.", _project_budget_only),
        "change": ("This is the clipped change. Add the image back, and keep the sum in [0, 1].", _project_change_only),
        "scaled": ("This shrinks the whole change. For a bound on every pixel each one is clipped by itself.",
                   _project_scaled),
        "around zero": ("The budget is around the image, not around zero.", _project_around_zero),
        "signs": ("This moves every pixel to the edge. A pixel that is within its bounds stays.", _project_signs),
    },
    passed="the nearest point of a box is found number by number.",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- measures


def lost_and_fooled(labels: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return (accuracy lost, fooling rate) from true classes and the classes decided before and after, all (N,)."""
    lost = (before == labels).double().mean() - (after == labels).double().mean()
    return lost.item(), (before != after).double().mean().item()


def _lost_as_fooled(labels: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    lost, _ = lost_and_fooled(labels, before, after)
    return lost, lost


def _fooled_right_only(labels: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    lost, _ = lost_and_fooled(labels, before, after)
    return lost, ((before == labels) & (before != after)).double().mean().item()


def _fooled_of_the_right(labels: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    lost, _ = lost_and_fooled(labels, before, after)
    right = before == labels
    return lost, (before != after)[right].double().mean().item()


def _lost_all_errors(labels: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    return (after != labels).double().mean().item(), lost_and_fooled(labels, before, after)[1]


def _lost_newly_wrong(labels: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    newly = (before == labels) & (after != labels)
    return newly.double().mean().item(), lost_and_fooled(labels, before, after)[1]


FOOLED = Exercise(
    [
        (torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 2, 0, 0]), torch.tensor([0, 1, 1, 1, 1, 0])),
        (torch.tensor([3, 1, 2, 0, 1, 1, 2]), torch.tensor([3, 1, 2, 0, 1, 0, 0]), torch.tensor([1, 0, 1, 0, 1, 2, 2])),
    ],
    lost_and_fooled,
    {
        "same": ("Both are the accuracy lost. An image that was wrong and becomes wrong otherwise is fooled, not lost.",
                 _lost_as_fooled),
        "right only": ("The fooling rate counts every changed decision, also of images that were wrong before.",
                       _fooled_right_only),
        "of the right": ("The share is of all images, not of those that were right before.", _fooled_of_the_right),
        "all errors": ("That is the error after the attack. What is lost is accuracy before minus accuracy after.",
                       _lost_all_errors),
        "newly wrong": ("Images that become right count too: accuracy before minus accuracy after.",
                        _lost_newly_wrong),
    },
    passed="two numbers that agree only where every image was right before.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- total variation


def moved_share(before: Tensor, after: Tensor) -> Tensor:
    """Return (N,): half the sum of the absolute differences of two maps (N, H, W) that each sum to one."""
    return (before - after).abs().sum((1, 2)) / 2


def _moved_not_halved(before: Tensor, after: Tensor) -> Tensor:
    return (before - after).abs().sum((1, 2))


def _moved_mean(before: Tensor, after: Tensor) -> Tensor:
    return (before - after).abs().mean((1, 2))


def _moved_signed(before: Tensor, after: Tensor) -> Tensor:
    return (before - after).sum((1, 2)) / 2


def _moved_most(before: Tensor, after: Tensor) -> Tensor:
    return (before - after).abs().amax((1, 2))


def _moved_batch(before: Tensor, after: Tensor) -> Tensor:
    return ((before - after).abs().sum((1, 2)) / 2).mean()


def _two_maps(seed: int) -> Tensor:
    return numbers(3, 2, 4, seed=seed).flatten(1).softmax(1).view(3, 2, 4)


MOVED = Exercise(
    [(_two_maps(0), _two_maps(1))],
    moved_share,
    {
        "not halved": ("Twice too much: weight that moves is counted where it leaves and where it arrives.",
                       _moved_not_halved),
        "mean": ("The mean over positions depends on the size of the map. Take half the sum.", _moved_mean),
        "signed": ("Without the absolute value the differences cancel: both maps sum to one.", _moved_signed),
        "most": ("That is the largest change of one position. Add up all of them and halve.", _moved_most),
        "batch": ("One number per image is wanted; this averages over the images as well.", _moved_batch),
    },
    passed="0 for the same map, 1 for maps without a place in common, whatever their size.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ paper and pencil

CRITICAL_EPSILON = Exercise(
    (),
    0.15,
    {
        "euclidean": (
            "That divides by the Euclidean length. Under a bound on every pixel it is the sum of absolutes.",
            0.9 / 14**0.5,
        ),
        "largest": ("That divides by the largest weight. All pixels move, so all weights add up.", 0.9 / 3),
        "signed sum": ("The weights are added with their signs. Each pixel moves the way that helps.", 0.9 / 2),
        "inverted": ("Upside down: the margin is divided by what one unit of epsilon gains.", 6 / 0.9),
    },
    tolerance=1e-4,
    passed="the margin over the sum of the absolute weights.",
)

RANDOM_AGAINST_SIGN = Exercise(
    (),
    55.43,
    {
        "linear": ("That is n itself. Random signs do not cancel fully: their sum grows like a root of n.", 3072),
        "one channel": ("An RGB pixel has three numbers: n is 3 times 32 times 32.", 32),
        "half": ("Half of the random signs are right and half wrong, but what counts is how far their sum strays.", 2),
        "side": ("There are 3 x 32 x 32 numbers; take the square root of that.", 96),
    },
    tolerance=2e-3,
    passed="and for a photograph of 224 pixels it is 388.",
)

EXERCISES = {
    "fgsm-step": FGSM_STEP,
    "step-in-pixels": STEP_IN_PIXELS,
    "project-to-budget": PROJECT,
    "lost-and-fooled": FOOLED,
    "moved-share": MOVED,
    "critical-epsilon": CRITICAL_EPSILON,
    "random-against-sign": RANDOM_AGAINST_SIGN,
}
