"""Exercises of the chapter "Gradient maps and double backpropagation"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn.check import Exercise, numbers

# ------------------------------------------------------------------------------------ where the loss is sensitive


def linear_gradient_map(weight: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Return J (N, D) of the linear softmax net: ``J_b = W^T (p_b - e_y)``, each image's own loss."""
    return (_softmax(weight, x) - F.one_hot(labels, len(weight))) @ weight


def _softmax(weight: Tensor, x: Tensor) -> Tensor:
    return (x @ weight.T).softmax(dim=1)


def _map_of_mean(weight: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return linear_gradient_map(weight, x, labels) / len(x)


def _map_without_label(weight: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return _softmax(weight, x) @ weight


def _map_of_logit(weight: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    return weight[labels]


LINEAR_GRADIENT_MAP = Exercise(
    [(numbers(3, 4, seed=1), numbers(5, 4, seed=2), torch.tensor([0, 2, 1, 1, 0])),
     (numbers(2, 3, seed=3), numbers(2, 3, seed=4), torch.tensor([1, 0]))],
    linear_gradient_map,
    {
        "mean": ("That is the gradient of the mean loss: smaller by the number of images. Each image has its own loss.",
                 _map_of_mean),
        "no label": ("The label is missing: d is p minus one at the true class.", _map_without_label),
        "logit": ("That is the gradient of the true class's logit. J belongs to the loss, which pulls on all logits.",
                  _map_of_logit),
        "sign": ("The other sign: J points to where the loss grows.",
                 lambda weight, x, labels: -linear_gradient_map(weight, x, labels)),
    },
    passed="one row of J per image: the error d, sent back through the weights.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- two weights


def two_weight_gradient(w: float, v: float, x: float, target: float) -> tuple[float, float]:
    """Derivatives with respect to w and v of ``R = J^2 / 2``, for the loss ``(v w x - t)^2 / 2`` and J = dl/dx."""
    y = v * w * x
    error = y - target
    gradient = error * v * w
    return gradient * v * (y + error), gradient * w * (y + error)


TWO_WEIGHTS = Exercise(
    (),
    two_weight_gradient(1, 2, 3, 5),
    {
        "first gradient": ("That is the gradient of the loss itself. Differentiate J^2 / 2.", (6.0, 3.0)),
        "chain only": ("J = e v w: the weights also move the error e. Use the product rule.", (4.0, 2.0)),
        "curvature only": ("J = e v w: besides e, the factor v w itself depends on the weight.", (24.0, 12.0)),
        "not times J": ("That is the derivative of J. The derivative of J^2 / 2 is J times it.", (14.0, 7.0)),
        "exchanged": ("Exchanged: the first number belongs to w.", (14.0, 28.0)),
    },
    passed="J is 2, and its derivatives are v (y + e) = 14 and w (y + e) = 7.",
)  # fmt: skip


def gradient_along(loss: nn.Module, x: Tensor, direction: Tensor, step: float) -> list[Tensor]:
    """How the weights' gradient changes when the images move along a direction: a central difference.

    ``(grad_W l(x + h u) - grad_W l(x - h u)) / (2 h)``, which tends to ``(d2l / dW dx) u``: a product of the mixed
    second derivative and a vector, without a second backward pass.

    Args:
        loss: a module from images to a scalar.
        x: images.
        direction: u, the shape of x.
        step: h.

    Returns:
        one tensor per parameter of ``loss``.
    """
    weights = list(loss.parameters())
    ends = [torch.autograd.grad(loss(x + h * direction), weights) for h in (step, -step)]
    return [(ahead - behind) / (2 * step) for ahead, behind in zip(*ends, strict=True)]


# ----------------------------------------------------------------------------------------- the linear softmax net


def linear_double_backward(weight: Tensor, x: Tensor, label: int) -> Tensor:
    """Return the derivative of ``||J||^2 / 2`` of the linear softmax net: ``d J^T + H (W J) x^T``, (K, D)."""
    chain, curvature = _two_terms(weight, x, label)
    return chain + curvature


def _two_terms(weight: Tensor, x: Tensor, label: int) -> tuple[Tensor, Tensor]:
    p = (weight @ x).softmax(dim=0)
    d = p - F.one_hot(torch.tensor(label), len(p))
    j = weight.T @ d
    h = torch.diag(p) - torch.outer(p, p)
    return torch.outer(d, j), torch.outer(h @ weight @ j, x)


def _double_without_h(weight: Tensor, x: Tensor, label: int) -> Tensor:
    d = (weight @ x).softmax(dim=0) - F.one_hot(torch.tensor(label), len(weight))
    j = weight.T @ d
    return torch.outer(d, j) + torch.outer(weight @ j, x)


LINEAR_DOUBLE_BACKWARD = Exercise(
    [(torch.eye(2), torch.tensor([1.0, 0.0]), 0), (numbers(3, 4, seed=5), numbers(4, seed=6), 2),
     (numbers(2, 3, seed=7), numbers(3, seed=8), 1)],
    linear_double_backward,
    {
        "chain only": ("Half of it: the error d depends on W, too. The second term is H (W J) x^T.",
                       lambda weight, x, label: _two_terms(weight, x, label)[0]),
        "curvature only": ("Half of it: J = W^T d has W in front, too. The first term is d J^T.",
                           lambda weight, x, label: _two_terms(weight, x, label)[1]),
        "no H": ("The logits move by dW x, but d moves by H times that: multiply W J by diag(p) - p p^T.",
                 _double_without_h),
        "twice": ("That is the derivative of ||J||^2, twice that of its half.",
                  lambda weight, x, label: 2 * linear_double_backward(weight, x, label)),
    },
    passed="the chain of the weights and the curvature of the softmax.",
)  # fmt: skip


def two_terms(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Split the gradient of ``1/2 ||J||^2`` of any network with respect to its weights into its two sources.

    With logits z, errors d = softmax(z) - e_y and J = (dz/dx)^T d: first what comes of the chain dz/dx with d held
    fixed, then what comes of d with the chain held fixed.

    Args:
        model: images to logits.
        x: images (N, ...).
        labels: int64 (N,).

    Returns:
        two lists, each with one tensor per parameter; zeros where a parameter takes no part.
    """
    weights, x = list(model.parameters()), x.detach().clone().requires_grad_()
    z = model(x)
    d = z.softmax(dim=1) - F.one_hot(labels, z.shape[1])
    held = d.detach().requires_grad_()
    (j,) = torch.autograd.grad(z, x, held, create_graph=True)  # linear in held: its derivative with J in front is G J
    chain = torch.autograd.grad(j, weights, j.detach(), retain_graph=True, allow_unused=True)
    (moved,) = torch.autograd.grad(j, held, j.detach(), retain_graph=True)
    curvature = torch.autograd.grad(d, weights, moved, allow_unused=True)

    def filled(gradients: Sequence[Tensor | None]) -> list[Tensor]:
        return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradients, strict=True)]

    return filled(chain), filled(curvature)


# ------------------------------------------------------------------------------------------------- sum or mean

MEAN_REDUCTION = Exercise(
    (),
    16384,
    {
        "once": ("J shrinks by 128; its square shrinks by 128 twice.", 128),
        "other way": ("The penalty has become too small. Its weight must grow.", 1 / 16384),
        "root": ("J shrinks by B, not by the root of B; then comes the square.", 128**0.5),
        "not at all": ("The penalty still takes a mean over images, but of gradients that are 128 times too small.", 1),
    },
    passed="128 squared. And a last, smaller batch would want another factor.",
)


# ----------------------------------------------------------------------------------------- the loss and its forms


def gradient_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``1/B sum_b 1/2 ||J_S - J_T||^2``."""
    return 0.5 * (student - teacher).flatten(1).square().sum(dim=1).mean()


def _distance_of_elements(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * (student - teacher).square().mean()


def _distance_not_squared(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * (student - teacher).flatten(1).norm(dim=1).mean()


def _distance_summed(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * (student - teacher).square().sum()


def _distance_of_batch(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * (student - teacher).norm() / len(student)


GRADIENT_DISTANCE = Exercise(
    [(numbers(3, 3, 2, 2, seed=9), numbers(3, 3, 2, 2, seed=10)), (torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)),
     (numbers(2, 5, seed=11), numbers(2, 5, seed=12))],
    gradient_distance,
    {
        "elements": ("Sum over the pixels and colours of an image; the mean is over images only.",
                     _distance_of_elements),
        "not squared": ("That is the form of the paper's formula. The one whose derivative it prints is squared.",
                        _distance_not_squared),
        "summed": ("The mean over the images is missing.", _distance_summed),
        "one norm": ("One norm of the whole batch. Each image has a norm of its own, and it is squared.",
                     _distance_of_batch),
        "no half": ("The half is missing; without it the printed derivative would have a 2.",
                    lambda student, teacher: 2 * gradient_distance(student, teacher)),
    },
    passed="squared and summed over each image, averaged over images.",
)  # fmt: skip

SLOPES_MEET = Exercise(
    (),
    0.5,
    {
        "one": ("There the two losses are equal. Compare their slopes: ||D|| and one half.", 1.0),
        "two": ("Upside down: the slope of the squared form is ||D|| itself, the other one is one half.", 2.0),
        "zero": ("At zero the squared form is flat; the other one has a kink and keeps the slope one half.", 0.0),
        "quarter": ("The slope of ||D||^2 / 2 is ||D||, and that of ||D|| / 2 is one half.", 0.25),
    },
    passed="nearer than one half the unsquared form pulls harder, farther the squared one.",
)


# --------------------------------------------------------------------------------------------------- symmetry


def flip_distance(gradient: Tensor, of_flipped: Tensor) -> Tensor:
    """Return ``1/B sum_b 1/2 ||J(x) - flip(J(flip(x)))||^2``."""
    return gradient_distance(gradient, of_flipped.flip(-1))


FLIP_DISTANCE = Exercise(
    [(numbers(2, 3, 4, 5, seed=13), numbers(2, 3, 4, 5, seed=14)),
     (numbers(1, 1, 3, 3, seed=15), numbers(1, 1, 3, 3, seed=16))],
    flip_distance,
    {
        "not back": ("The second map is that of the mirrored image. Mirror it back before you compare.",
                     gradient_distance),
        "upside down": ("That reverses rows. Left and right is the last axis, -1.",
                        lambda gradient, of_flipped: gradient_distance(gradient, of_flipped.flip(-2))),
        "sum": ("The second map is subtracted, not added.",
                lambda gradient, of_flipped: gradient_distance(gradient, -of_flipped.flip(-1))),
        "no half": ("The half is missing, or the sum is not squared as in the other losses.",
                    lambda gradient, of_flipped: 2 * flip_distance(gradient, of_flipped)),
    },
    passed="no teacher: the network is compared with its own mirror image.",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- cost


def passes(kind: str, teacher: float = 0.0) -> float:
    """Multiply-adds of one training step, in forward passes of the student.

    A backward pass to the images alone costs 1, one to weights and images 2; a backward pass through a backward pass to
    the images costs 2.

    Args:
        kind: ``"plain"`` (with a gradient to the images), ``"min-l2"``, ``"symmetry"`` or ``"gradient"``.
        teacher: for ``"gradient"``, a forward pass of the teacher in forward passes of the student.

    >>> passes("plain"), passes("min-l2"), passes("gradient", teacher=4)
    (3.0, 6.0, 14.0)
    """
    forward, to_images, through_both = 1, 1, 2 + 2
    double = forward + to_images + through_both
    return {"plain": 3.0, "min-l2": double, "symmetry": 2.0 * double, "gradient": double + 2 * teacher}[kind] * 1.0


STEP_COST = Exercise(
    (),
    14.0,
    {
        "teacher trains": ("The teacher is not trained: it needs a forward pass and one backward pass to the images.",
                           18.0),
        "teacher forward": ("J_T is a gradient: the teacher needs a backward pass to the images as well.", 10.0),
        "single backward": ("The student needs the second backward pass, through forward and backward: 6 and not 3.",
                            11.0),
        "everything double": ("Only the student is differentiated twice. The teacher's J is a constant.", 30.0),
    },
    passed="6 for the student and twice 4 for the teacher.",
)  # fmt: skip


EXERCISES = {
    "linear-gradient-map": LINEAR_GRADIENT_MAP,
    "two-weights": TWO_WEIGHTS,
    "linear-double-backward": LINEAR_DOUBLE_BACKWARD,
    "mean-reduction": MEAN_REDUCTION,
    "gradient-distance": GRADIENT_DISTANCE,
    "slopes-meet": SLOPES_MEET,
    "flip-distance": FLIP_DISTANCE,
    "step-cost": STEP_COST,
}
