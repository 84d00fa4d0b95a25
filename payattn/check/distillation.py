"""Exercises of the chapter "Distillation, hints and activations", and what it counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from payattn import transfer
from payattn.check import Exercise, numbers

# ---------------------------------------------------------------------------------------------- softened predictions


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``tau^2 / B sum_b KL(pi_T || pi_S)`` of logits (B, K), a scalar."""
    mine, theirs = (F.log_softmax(y / temperature, dim=1) for y in (student, teacher))
    return temperature**2 * (theirs.exp() * (theirs - mine)).sum(1).mean()


def _soft_other_way(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_loss(teacher, student, temperature)


def _soft_without_square(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_loss(student, teacher, temperature) / temperature**2


def _soft_multiplied(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature**4 * soft_loss(student, teacher, 1 / temperature)


def _soft_of_all_elements(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_loss(student, teacher, temperature) / student.shape[1]


def _soft_summed(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return soft_loss(student, teacher, temperature) * len(student)


def _soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    soft = (teacher / temperature).softmax(1)
    return -(temperature**2) * (soft * F.log_softmax(student / temperature, dim=1)).sum(1).mean()


SOFT_LOSS = Exercise(
    [(numbers(3, 5), 2 * numbers(3, 5, seed=1), 4.0), (numbers(2, 4, seed=2), numbers(2, 4, seed=3), 1.5)],
    soft_loss,
    {
        "other way": ("This is KL of the student against the teacher. The teacher weighs the logarithms: it comes "
                      "first.", _soft_other_way),
        "no square": ("The factor tau^2 is missing: without it the pull fades as tau grows.", _soft_without_square),
        "multiplied": ("The logits are multiplied by tau here. A large tau must make the predictions softer.",
                       _soft_multiplied),
        "all elements": ("A mean over all B K elements: the sum over the K classes belongs to the divergence. Only "
                         "images are averaged.", _soft_of_all_elements),
        "summed": ("Divide by the number of images; this is the sum over the batch.", _soft_summed),
        "cross-entropy": ("That is the cross-entropy with soft targets. Subtract the teacher's own entropy, so that "
                          "equal logits give 0.", _soft_cross_entropy),
    },
    passed="zero where the predictions agree, and its gradient is tau / B (pi_S - pi_T).",
)  # fmt: skip


def soft_gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the derivative (B, K) of :func:`soft_loss` with respect to the student's logits."""
    return temperature / len(student) * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1))


def limit_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return what :func:`soft_loss` tends to for a large tau: half the mean square of the centred logits' difference.

    Args:
        student, teacher: logits, (B, K).

    Returns:
        a scalar.

    Example:
        >>> limit_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 2.0, 4.0]]))
        tensor(0.1111)
    """
    difference = student - teacher
    return (difference - difference.mean(1, keepdim=True)).square().mean() / 2


LIMIT = Exercise(
    [],
    torch.tensor([1.0, 0.0, -1.0]),
    {
        "not centred": ("Centre the logits of each network first: a constant added to all logits changes no "
                        "prediction.", torch.tensor([7 / 3, 4 / 3, 1 / 3])),
        "sign": ("The gradient points from the teacher to the student, pi_S - pi_T; this is the step, its opposite.",
                 torch.tensor([-1.0, 0.0, 1.0])),
        "not divided": ("Divide by the number of classes, K = 3.", torch.tensor([3.0, 0.0, -3.0])),
    },
    passed="only differences of logits count, and each class counts the same.",
)  # fmt: skip


def historic_ratio(classes: int, temperature: float = 4.0, alpha: float = 0.9) -> float:
    """Return how many times the divergence, as the first code weighed it, counts against the cross-entropy."""
    return 2 * alpha * temperature**2 / (classes * (1 - alpha))


HISTORIC = Exercise(
    [],
    historic_ratio(1000),
    {
        "current": ("That is the current form, with the sum over the classes. The first code took the mean over all "
                    "elements.", historic_ratio(1000) * 500),
        "no factor": ("The factor 2 of the first code is missing.", historic_ratio(1000) / 2),
        "ten classes": ("That is CIFAR-10. Put K = 1000.", historic_ratio(10)),
        "not against": ("That is the weight of the divergence alone; divide by the weight of the cross-entropy, "
                        "1 - alpha.", historic_ratio(1000) / 10),
        "no square": ("The temperature enters squared.", historic_ratio(1000) / 4),
    },
    passed="less than a third of the cross-entropy's weight, where ten classes gave nearly thirty times as much.",
)  # fmt: skip


def first_pull(classes: int, confidence: float = 0.9, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """Return what one image asks of a student that has not learned anything, teacher and label, (K,) each.

    Args:
        classes: K.
        confidence: the teacher's probability of class 0, the label, at temperature 1; it shares out the rest evenly.
        temperature: tau.

    Returns:
        ``tau (pi_S - pi_T)`` and ``softmax(y_S) - e_0`` for a uniform student, without weights.

    Example:
        >>> teacher, label = first_pull(10)
        >>> round(teacher[0].item(), 2), round(label[0].item(), 2)
        (-0.6, -0.9)
    """
    odds = torch.tensor(confidence * (classes - 1) / (1 - confidence), dtype=torch.float64)
    logits = torch.zeros(classes, dtype=torch.float64)
    logits[0] = odds.log()
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    label = F.one_hot(torch.tensor(0), classes)
    return temperature * (uniform - (logits / temperature).softmax(0)), uniform - label


def mixed_target(teacher: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Return the probabilities (B, K) at which distillation with tau = 1 is smallest: teacher and label mixed.

    Args:
        teacher: logits, (B, K).
        labels: int64 (B,).
        alpha: weight of the teacher.

    Example:
        >>> mixed_target(torch.zeros(1, 2), torch.tensor([0]), 0.5)
        tensor([[0.7500, 0.2500]])
    """
    return alpha * teacher.softmax(1) + (1 - alpha) * F.one_hot(labels, teacher.shape[1])


LABEL_WINS = Exercise(
    [],
    1 / 9,
    {
        "all of it": ("Smaller: the label has only 1 - alpha to give, and the teacher's lead counts alpha times.",
                      0.1),
        "inverse": ("The other way round: the larger alpha, the smaller the lead that a label can make good.", 9.0),
        "half": ("Both classes get the teacher's share, times alpha; the label's class gets 1 - alpha on top.", 0.5),
    },
    passed="a teacher that is wrong by more than a ninth is believed.",
    tolerance=1e-3,
)  # fmt: skip


# -------------------------------------------------------------------------------------------- activations and adapters


def activation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean square difference of features (B, C, H, W), those of each image at unit length."""
    one, two = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (student, teacher))
    return (one - two).square().mean()


def _distance_raw(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean()


def _distance_per_channel(student: Tensor, teacher: Tensor) -> Tensor:
    return (F.normalize(student.flatten(2), dim=2) - F.normalize(teacher.flatten(2), dim=2)).square().mean()


def _distance_per_position(student: Tensor, teacher: Tensor) -> Tensor:
    return (F.normalize(student, dim=1) - F.normalize(teacher, dim=1)).square().mean()


def _distance_whole_batch(student: Tensor, teacher: Tensor) -> Tensor:
    return (student / student.norm() - teacher / teacher.norm()).square().mean()


def _distance_of_maps(student: Tensor, teacher: Tensor) -> Tensor:
    return transfer.at_loss(student, teacher)


def _distance_summed(student: Tensor, teacher: Tensor) -> Tensor:
    return activation_distance(student, teacher) * student[0].numel()


ACTIVATION_DISTANCE = Exercise(
    [
        (numbers(2, 3, 2, 2), 2 * numbers(2, 3, 2, 2, seed=1)),
        (numbers(3, 2, 1, 4, seed=2), numbers(3, 2, 1, 4, seed=3)),
    ],
    activation_distance,
    {
        "raw": ("The features are compared at their own length. Bring those of each image to unit length first.",
                _distance_raw),
        "channels": ("Each channel has length one here. One length per image: all channels and positions together.",
                     _distance_per_channel),
        "positions": ("Each position has length one here. One length per image: all channels and positions together.",
                      _distance_per_position),
        "batch": ("One length for the whole batch: then what an image asks for depends on its neighbours.",
                  _distance_whole_batch),
        "maps": ("These are the maps. Full activations keep their channels and their signs.", _distance_of_maps),
        "sum": ("The mean is over channels and positions too; this sums over them.", _distance_summed),
    },
    passed="the same code as for maps, without the sum over channels; so it needs as many channels on both sides.",
)  # fmt: skip


def adapter_parameters(student: int, teacher: int) -> int:
    """Return the parameters of a 1x1 convolution with bias between two numbers of channels; 0 if they are equal.

    Example:
        >>> adapter_parameters(16, 32), adapter_parameters(16, 16)
        (544, 0)
    """
    return 0 if student == teacher else student * teacher + teacher


ADAPTERS = Exercise(
    [],
    sum(adapter_parameters(16 * 2**k, 32 * 2**k) for k in range(3)),
    {
        "no bias": ("The biases are missing: one for each channel of the teacher.", 10752),
        "other bias": ("One bias for each channel that comes out, so for each of the teacher's.", 10864),
        "3x3": ("The adapter is a 1x1 convolution: one weight for each pair of channels.", 9 * 10752 + 224),
        "last": ("That is the last group alone; the three groups have an adapter each.", 8320),
    },
    passed="about six per cent on top of the student's, and thrown away after the training.",
)  # fmt: skip


def explained(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return what share of the teacher's features the best 1x1 adapter finds in the student's, a scalar.

    .. math:: 1 - \min_{W, b} \frac{\sum_{b, i} \lVert W a_{S,bi} + b - a_{T,bi} \rVert^2}
        {\sum_{b, i} \lVert a_{T,bi} - \bar a_T \rVert^2}

    Args:
        student: (B, C, H, W).
        teacher: (B, C', H, W), of the same images and positions.

    Returns:
        in [0, 1]; 1 where the teacher's features are an affine function of the student's, position by position.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0, 5.0]]]])
        >>> explained(x, torch.cat([3 * x + 1, -x], dim=1))
        tensor(1.)
    """
    rows = student.movedim(1, -1).flatten(0, -2).double()
    wanted = teacher.movedim(1, -1).flatten(0, -2).double()
    rows, wanted = rows - rows.mean(0), wanted - wanted.mean(0)
    weight = torch.linalg.lstsq(rows, wanted).solution
    return (1 - (rows @ weight - wanted).square().sum() / wanted.square().sum()).to(student.dtype)


def _explained_without_bias(student: Tensor, teacher: Tensor) -> Tensor:
    rows, wanted = (x.movedim(1, -1).flatten(0, -2).double() for x in (student, teacher))
    rest = rows @ torch.linalg.lstsq(rows, wanted).solution - wanted
    return (1 - rest.square().sum() / (wanted - wanted.mean(0)).square().sum()).to(student.dtype)


def _explained_not_centred(student: Tensor, teacher: Tensor) -> Tensor:
    rows, wanted = (x.movedim(1, -1).flatten(0, -2).double() for x in (student, teacher))
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    rest = rows @ torch.linalg.lstsq(rows, wanted).solution - wanted
    return (1 - rest.square().sum() / wanted.square().sum()).to(student.dtype)


def _explained_rest(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - explained(student, teacher)


def _explained_exchanged(student: Tensor, teacher: Tensor) -> Tensor:
    return explained(teacher, student)


def _explained_per_image(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.stack([explained(s[None], t[None]) for s, t in zip(student, teacher, strict=True)]).mean()


EXPLAINED = Exercise(
    [
        (1 + numbers(4, 2, 3, 3), 2 + numbers(4, 3, 3, 3, seed=1) + (1 + numbers(4, 2, 3, 3))[:, :1]),
        (numbers(3, 1, 4, 4, seed=2), numbers(3, 2, 4, 4, seed=3) + 2 * numbers(3, 1, 4, 4, seed=2)),
    ],
    explained,
    {
        "no bias": ("The adapter has a bias: add a column of ones, or centre each channel first.",
                    _explained_without_bias),
        "not centred": ("Divide by the variance: without subtracting the teacher's mean a bias alone would explain "
                        "most of it.", _explained_not_centred),
        "rest": ("That is the share which is left over; one minus it is explained.", _explained_rest),
        "exchanged": ("This explains the student by the teacher; the adapter goes the other way.",
                      _explained_exchanged),
        "each image": ("One adapter for all images together: a new one for each image would explain far more.",
                       _explained_per_image),
    },
    passed="what an adapter finds without any learning of the student is no achievement of the student.",
)  # fmt: skip


def hint_floor(teacher: Tensor) -> Tensor:
    """Return the smallest hint that an adapter ending in ReLU can reach: the mean square of what is negative.

    Example:
        >>> hint_floor(torch.tensor([[[[3.0, -2.0]]]]))
        tensor(2.)
    """
    return teacher.clamp_max(0).square().mean()


def asked(channels: int, positions: int, classes: int) -> dict[str, int]:
    """Return how many free numbers each loss prescribes per image, for one layer; softened predictions for all.

    Args:
        channels, positions: C and N of the layer.
        classes: K.

    Example:
        >>> asked(128, 64, 10)
        {'softened predictions': 9, 'map': 63, 'full activations': 8191, 'hint': 8192}
    """
    whole = channels * positions
    return {"softened predictions": classes - 1, "map": positions - 1, "full activations": whole - 1, "hint": whole}


EXERCISES = {
    "soft-loss": SOFT_LOSS,
    "distillation-limit": LIMIT,
    "historic-weight": HISTORIC,
    "label-wins": LABEL_WINS,
    "activation-distance": ACTIVATION_DISTANCE,
    "adapter-parameters": ADAPTERS,
    "explained-share": EXPLAINED,
}
