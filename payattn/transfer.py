r"""Attention Transfer (Zagoruyko and Komodakis, ICLR 2017): a student learns where its teacher looks.

A map says where a layer is active, by statistics of ``|A|`` over the channels c at each position i (section 3.1):

    F_sum^p(A)_i = sum_c |A_ci|^p,   F_max^p(A)_i = max_c |A_ci|^p           ``activation_map``
    Q^ = F(A) / ||F(A)||_2                                                    ``attention_map``
    l = mean (Q^_S - Q^_T)^2,   L = L_cls + beta sum_j l_j                    ``at_loss``, eq. (2)

and a gradient map says where the loss is sensitive, ``J = dL/dx`` (section 3.2): ``input_gradient``,
``gradient_loss``, ``symmetry_loss``. ``kd_loss`` is what it is compared and combined with.

The functions hold the mathematics.  ``Distill`` and ``GradientTransfer`` are what a training loop calls: they read
layers of any two networks by name, and leave both as they found them.  The teacher never gets a gradient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from payattn import distributed
from payattn.attention import choose, promote

REDUCTIONS = ("sum", "mean", "max")
FORMS = ("code", "paper", "paper-squared")
RESIZES = ("smaller", "larger", "error")
KD_FORMS = ("current", "historic")
GRADIENT_FORMS = ("squared", "paper", "normalised")
BETA_SCHEDULES = ("constant", "linear", "step")
TRANSFERS = ("attention", "activation", "hint")
GRADIENT_KINDS = ("gradient", "min-l2", "symmetry")
EPS = 1e-12  # the smallest length a map is divided by, as in the authors' code
SHOWN = 12  # layers that an error lists

Size = Sequence[int]


# Maps


def _check_features(features: Tensor, what: str = "features A") -> Tensor:
    if features.ndim != 4 or not features.is_floating_point():
        kind = str(features.dtype).removeprefix("torch.")
        raise ValueError(f"{what} must be floating (N, C, H, W), got {tuple(features.shape)} {kind}")
    return promote(features)


def _power(x: Tensor, p: float) -> Tensor:
    """``|x|^p``; an even p needs no absolute value, and so has its exact second derivative at zero too."""
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}: below 1 the slope at zero is infinite")
    if p == 1:
        return x.abs()
    return x.pow(p) if p % 2 == 0 else x.abs().pow(p)


def activation_map(features: Tensor, p: float = 2.0, reduce: str = "sum") -> Tensor:
    r"""Where a layer is active: ``F_sum^p(A)_i = sum_c |A_ci|^p`` or ``F_max^p(A)_i = max_c |A_ci|^p``.

    A larger p gives more weight to the strongest units.  The slope at zero is taken as 0 for every p.

    Args:
        features: A, (N, C, H, W).
        p: at least 1; 2 is the paper's choice after its comparison.
        reduce: ``"sum"`` (the paper), ``"mean"`` (the authors' code; ``attention_map`` is the same for both) or
            ``"max"``.

    Returns:
        (N, H, W), 0 or more, at least float32.  A large p may overflow; ``attention_map`` does not.

    Raises:
        ValueError: another shape or reduction, or a p below 1.

    Source: Attention Transfer, section 3.1; golden check 1 of the specification.

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0], [2.0, 0.0]], [[0.0, -2.0], [1.0, 0.0]]]])
        >>> activation_map(features, p=2).flatten().tolist(), activation_map(features, 1, "max").flatten().tolist()
        ([1.0, 8.0, 5.0, 0.0], [1.0, 2.0, 2.0, 0.0])
    """
    x = _check_features(features)
    if choose("reduce", reduce, REDUCTIONS) == "max":
        return _power(x.abs().amax(dim=1), p)
    powers = _power(x, p)
    return powers.sum(dim=1) if reduce == "sum" else powers.mean(dim=1)


def _scaled_map(features: Tensor, p: float, reduce: str) -> Tensor:
    """``activation_map`` of A divided by its largest ``|A|``, per image: no power overflows.

    The divisor is a constant for the gradient.  That is exact for everything which, like a normalised map, does not
    change with the scale of A: there the gradient along A is zero.
    """
    x = _check_features(features)
    largest = x.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    return activation_map(x / largest.masked_fill(largest == 0, 1), p, reduce)


def unit(x: Tensor) -> Tensor:
    r"""Divide what belongs to each image by its Euclidean length, ``v / max(||v||_2, 1e-12)``; zeros stay zeros.

    Args:
        x: (N, ...).

    Returns:
        the same shape, at least float32.

    Source: the authors' code (``F.normalize``).

    Example:
        >>> unit(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])).flatten().tolist()
        [0.6000000238418579, 0.800000011920929, 0.0, 0.0]
    """
    flat = promote(x).flatten(1)
    return (flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(EPS)).view(x.shape)


def resize_map(maps: Tensor, size: Size) -> Tensor:
    """Bring maps to another size: a side that shrinks takes the mean of its area, one that grows is bilinear.

    Args:
        maps: (N, H, W), or features (N, C, H, W).
        size: (H', W').

    Returns:
        (N, H', W') or (N, C, H', W'), at least float32.

    Source: Attention Transfer interpolates one map to the other; the paper does not say how.  Ours.

    Example:
        >>> resize_map(torch.tensor([[[1.0, 3.0], [1.0, 3.0]]]), (1, 2))
        tensor([[[1., 3.]]])
    """
    x = promote(maps if maps.ndim == 4 else maps[:, None])
    down = (min(x.shape[2], int(size[0])), min(x.shape[3], int(size[1])))
    if down != tuple(x.shape[2:]):
        x = F.adaptive_avg_pool2d(x, down)
    if down != tuple(size):
        x = F.interpolate(x, size=(int(size[0]), int(size[1])), mode="bilinear", align_corners=False)
    return x if maps.ndim == 4 else x[:, 0]


def attention_map(features: Tensor, p: float = 2.0, reduce: str = "sum", size: Size | None = None) -> Tensor:
    r"""The map that is transferred, of unit length: ``Q^ = F(A) / ||F(A)||_2``.

    It does not change when A is scaled, or when channels are permuted, negated, repeated or filled up with zeros.
    A is divided by its largest value before the power, so nothing overflows for any p.

    Args:
        features: A, (N, C, H, W); half precision is computed in float32.
        p, reduce: see ``activation_map``.
        size: (H', W') to bring the map to before it is normalised, see ``resize_map``.

    Returns:
        (N, H, W) or (N, H', W'), 0 or more, Euclidean length 1 per image, or 0 where A is zero everywhere.

    Raises:
        ValueError: as ``activation_map``.

    Source: Attention Transfer, eq. (2).

    Example:
        >>> attention_map(torch.tensor([[[[3.0, -4.0]]]]), p=1)
        tensor([[[0.6000, 0.8000]]])
    """
    maps = _scaled_map(features, p, reduce)
    return unit(maps if size is None else resize_map(maps, size))


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    r"""How alike two maps are, ``cos = <Q^_S, Q^_T>``, in [0, 1] for maps; ``||Q^_S - Q^_T||^2 = 2 - 2 cos``.

    Args:
        student, teacher: maps of one shape, (N, H, W), normalised or not.

    Returns:
        (N,), at least float32.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> cosine(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]]))
        tensor([0.6000])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"maps must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}; see resize_map"
        )
    return (unit(student) * unit(teacher)).flatten(1).sum(dim=1)


# The transfer loss


def _common_size(student: Size, teacher: Size, resize: str) -> tuple[int, int]:
    pick = max if choose("resize", resize, RESIZES) == "larger" else min
    if resize == "error" and tuple(student) != tuple(teacher):
        raise ValueError(
            f"the student's map is {tuple(student)} and the teacher's {tuple(teacher)}; take layers of one size, or "
            "resize='smaller'"
        )
    return pick(student[0], teacher[0]), pick(student[1], teacher[1])


def _distance(student: Tensor, teacher: Tensor, form: str) -> Tensor:
    """The three ways to write how far two sets of unit vectors (N, ...) are apart, see ``at_loss``."""
    difference = (student - teacher).flatten(1)
    if choose("form", form, FORMS) == "code":
        return difference.square().mean()
    if form == "paper":  # the library's norm: its slope at zero is zero, that of a root of squares is not a number
        return 0.5 * torch.linalg.vector_norm(difference, dim=1).mean()
    return 0.5 * difference.square().sum()


def map_loss(student: Tensor, teacher: Tensor, form: str = "code", resize: str = "smaller") -> Tensor:
    r"""How far the student's maps are from the teacher's, both brought to one size and unit length.

    Args:
        student, teacher: maps (N, H, W), 0 or more, such as ``activation_map`` makes; sizes may differ.
        form, resize: see ``at_loss``.

    Returns:
        a scalar, at least float32.  The teacher gets no gradient.

    Raises:
        ValueError: if the maps are not for the same images, or for an unknown form.

    Source: Attention Transfer, eq. (2).

    Example:
        >>> map_loss(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]]))
        tensor(1.)
    """
    if student.ndim != 3 or teacher.ndim != 3 or len(student) != len(teacher) or not len(student):
        raise ValueError(
            f"maps must be (N, H, W) of the same N >= 1 images, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    size = _common_size(student.shape[1:], teacher.shape[1:], resize)
    return _distance(unit(resize_map(student, size)), unit(resize_map(teacher.detach(), size)), form)


def at_loss(
    student: Tensor, teacher: Tensor, p: float = 2.0, reduce: str = "sum", form: str = "code", resize: str = "smaller"
) -> Tensor:
    r"""The attention transfer loss of one pair of layers, without its weight beta.

    With ``D_b = Q^_S - Q^_T`` of image b, B images and N = H W positions:

    - ``"code"``: ``1/(B N) sum_b ||D_b||^2``, the authors' code, with beta = 1000; in [0, 2 / N];
    - ``"paper"``: ``1/B sum_b 1/2 ||D_b||``, the paper's eq. (2), not squared; it does not speak of the batch, over
      which we take the mean;
    - ``"paper-squared"``: ``1/2 sum_b ||D_b||^2``, eq. (2) with the square that the authors' code has.

    ``paper_beta`` converts the weight between the first and the last.  For the second there is no fixed factor: its
    slope is the one of the first where ``beta_paper = 4 beta_code ||D_b|| / N``.

    Args:
        student, teacher: features A, (N, C, H, W); channels may differ.
        p, reduce: see ``activation_map``.
        form: as above.
        resize: where the sizes differ, both maps go to the ``"smaller"`` side by the mean over its area or to the
            ``"larger"`` one, before they are normalised; ``"error"`` refuses.  Maps are resized, not features, whose
            signs would cancel.

    Returns:
        a scalar, at least float32.  The teacher gets no gradient.

    Raises:
        ValueError: shapes that do not fit, unknown names.

    Source: Attention Transfer, eq. (2); authors' code; golden check 2 of the specification.

    Example:
        >>> teacher = torch.tensor([[[[1.0, 2.0], [2.0, 0.0]], [[0.0, -2.0], [1.0, 0.0]]]])
        >>> at_loss(torch.ones(1, 1, 2, 2), teacher)
        tensor(0.1311)
    """
    return map_loss(_scaled_map(student, p, reduce), _scaled_map(teacher, p, reduce), form, resize)


def _check_size(size: Size, batch: int) -> int:
    if len(size) != 2 or min(*size, batch) < 1:
        raise ValueError(f"size must be (H, W) and batch a number of images, all at least 1, got {size} and {batch}")
    return int(size[0] * size[1])


def paper_beta(beta: float, size: Size, batch: int) -> float:
    r"""The weight of form ``"paper-squared"`` that equals ``beta`` in form ``"code"``: ``2 beta / (B N)``.

    One beta of the code is another number for each size of map, and weighs the smallest map most.

    Args:
        beta: of the code, 1000 in the authors' runs.
        size: (H, W) of the map, N = H W.
        batch: B.

    Raises:
        ValueError: sizes below 1.

    Source: the specification, 2.2; the paper says "around 0.1".

    Example:
        >>> [round(paper_beta(1000, (side, side), batch=128) / 2, 5) for side in (32, 16, 8)]
        [0.00763, 0.03052, 0.12207]
    """
    return 2 * beta / (batch * _check_size(size, batch))


def code_beta(beta: float, size: Size, batch: int) -> float:
    """The weight of form ``"code"`` that equals ``beta`` in form ``"paper-squared"``: the inverse of ``paper_beta``.

    Args:
        beta: of the paper.
        size, batch: see ``paper_beta``.

    Raises:
        ValueError: sizes below 1.

    Example:
        >>> code_beta(0.25, (8, 8), batch=128)
        1024.0
    """
    return beta * batch * _check_size(size, batch) / 2


def beta_schedule(
    kind: str, beta: float, epoch: int, epochs: int, milestones: Sequence[int] = (), start: int = 1
) -> float:
    r"""The weight of the transfer loss in one epoch.

    - ``"constant"``: beta
    - ``"linear"``: ``beta (1 - e / E)``, e epochs done of E
    - ``"step"``: beta times 0.2 at each milestone that has come, as the authors' learning rate

    and 0 before epoch ``start``.

    Args:
        kind: as above.
        beta: at the start.
        epoch: from 1.
        epochs: E.
        milestones: epochs, for ``"step"``.
        start: the first epoch with transfer; the paper's ImageNet run starts at 60 of 100.

    Raises:
        ValueError: an unknown kind, an epoch outside the run, or ``"step"`` without milestones.

    Source: ours.  The paper lets beta decay where it adds distillation, and does not say how.

    Example:
        >>> [beta_schedule("linear", 1000, epoch, 4) for epoch in (1, 2, 4)]
        [1000.0, 750.0, 250.0]
    """
    if not 1 <= epoch <= epochs:
        raise ValueError(f"epoch counts from 1 to epochs={epochs}, got {epoch}")
    if (choose("schedule", kind, BETA_SCHEDULES) == "step") != bool(milestones):
        raise ValueError("schedule='step' and milestones=(60, 120, ...) go together; one came alone")
    if epoch < start:
        return 0.0
    if kind == "linear":
        return beta * (1 - (epoch - 1) / epochs)
    return beta * 0.2 ** sum(epoch >= at for at in milestones)


# Knowledge distillation


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0, form: str = "current") -> Tensor:
    r"""Distance of softened predictions, ``tau^2 / B sum_b KL(pi_T || pi_S)`` with ``pi = softmax(y / tau)``.

    Its gradient with respect to ``y_S`` is ``tau / B (pi_S - pi_T)``.

    Args:
        student, teacher: logits y, (N, K).
        temperature: tau, above 0.
        form: ``"current"``, as above; ``"historic"`` is the authors' code before July 2018, which took the mean over
            all N K elements and doubled it: 2 / K times the current one.

    Returns:
        a scalar, at least float32.  The teacher gets no gradient.

    Raises:
        ValueError: logits of different shapes, a temperature that is not positive.

    Source: Hinton et al. 2015; authors' code; golden check 11 of the specification.

    Example:
        >>> soft_target_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 2.0, 4.0]]))
        tensor(0.1031)
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"logits must be (N, K) of the same images and classes, got {tuple(student.shape)} of the student and "
            f"{tuple(teacher.shape)} of the teacher"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive (4 in the authors' code), got {temperature}")
    log_student = F.log_softmax(promote(student) / temperature, dim=1)
    log_teacher = F.log_softmax(promote(teacher.detach()) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    n, classes = student.shape
    weight = 1 / n if choose("form", form, KD_FORMS) == "current" else 2 / (n * classes)
    return weight * temperature**2 * divergence


def kd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, alpha: float = 0.9,
    form: str = "current",
) -> Tensor:  # fmt: skip
    r"""Knowledge distillation, ``alpha tau^2 / B sum_b KL(pi_T || pi_S) + (1 - alpha) CE(y_S, t)``.

    Args:
        student, teacher: logits, (N, K).
        labels: t, int64 (N,).
        temperature, form: see ``soft_target_loss``; the form does not change the weight of the cross-entropy.
        alpha: in [0, 1]; 0 is plain cross-entropy.

    Returns:
        a scalar, at least float32.  The teacher gets no gradient.

    Raises:
        ValueError: as ``soft_target_loss``, and for an alpha outside [0, 1].

    Source: Hinton et al. 2015; authors' code; golden check 11 of the specification.

    Example:
        >>> kd_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 2.0, 4.0]]), torch.tensor([2]))
        tensor(0.1336)
    """
    soft = soft_target_loss(student, teacher, temperature, form)
    return _check_share("alpha", alpha) * soft + (1 - alpha) * F.cross_entropy(promote(student), labels)


def _check_share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value


# Full activations and hints


def activation_loss(student: Tensor, teacher: Tensor, form: str = "code") -> Tensor:
    r"""Full-activation transfer: the distance of all features, each image's of unit length.

    ``vec r(A_S) / ||vec r(A_S)|| - vec A_T / ||vec A_T||``, with r a learned 1x1 convolution where the channels
    differ (``adapter``); the forms are those of ``at_loss``, and N counts channels too.

    Args:
        student: r(A_S), (N, C, H, W).
        teacher: A_T, (N, C, H', W'); where sizes differ, both are averaged over areas to the smaller side.
        form: see ``at_loss``.

    Returns:
        a scalar, at least float32.  The teacher gets no gradient.

    Raises:
        ValueError: if the channels differ.

    Source: Attention Transfer, the comparison with full activations on CIFAR-10; specification, 2.6.

    Example:
        >>> activation_loss(torch.ones(1, 2, 1, 1), torch.tensor([[[[5.0]], [[5.0]]]]))
        tensor(0.)
    """
    one, two = _same_channels(student, teacher)
    size = _common_size(one.shape[2:], two.shape[2:], "smaller")
    return _distance(unit(resize_map(one, size)), unit(resize_map(two, size)), form)


def _same_channels(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    one, two = _check_features(student, "the student's features"), _check_features(teacher, "the teacher's features")
    if one.shape[:2] != two.shape[:2]:
        raise ValueError(
            f"features must be of the same images and have the same channels, got {tuple(one.shape)} and "
            f"{tuple(two.shape)}; send the student's through an adapter"
        )
    return one, two.detach()


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""FitNets' hint: the mean squared difference of an adapted feature and the teacher's, not normalised.

    Args:
        student: r(A_S), (N, C, H, W), see ``hint_adapter``.
        teacher: A_T, the same shape.

    Returns:
        a scalar, at least float32.  The teacher gets no gradient.

    Raises:
        ValueError: if the shapes differ.

    Source: Romero et al. 2015 (FitNets); one-stage form in the specification, 2.6.

    Example:
        >>> hint_loss(torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]]))
        tensor(2.)
    """
    one, two = _same_channels(student, teacher)
    if one.shape != two.shape:
        raise ValueError(f"a hint needs features of one size, got {tuple(one.shape)} and {tuple(two.shape)}")
    return F.mse_loss(one, two)


def adapter(student: int, teacher: int) -> nn.Module:
    """r of full-activation transfer: a 1x1 convolution with bias where the channels differ, else the identity.

    Args:
        student, teacher: channels.

    Source: Attention Transfer, the comparison with full activations on CIFAR-10.

    Example:
        >>> adapter(16, 16), adapter(16, 32)
        (Identity(), Conv2d(16, 32, kernel_size=(1, 1), stride=(1, 1)))
    """
    return nn.Identity() if student == teacher else nn.Conv2d(student, teacher, kernel_size=1)


def hint_adapter(student: Size, teacher: Size) -> nn.Sequential:
    """The regressor of a hint: a convolution that meets the teacher's size, BatchNorm, ReLU.

    Half the size is a strided 3x3 convolution, twice the size a transposed 4x4; else the kernel is as large as it must
    be without padding, 1x1 where the sizes are equal.

    Args:
        student, teacher: (C, H, W) of the features.

    Raises:
        ValueError: if the student's features are smaller, and not by half.

    Source: the benchmark code RepDistiller; FitNets has the unpadded convolution.

    Example:
        >>> hint_adapter((8, 6, 6), (16, 3, 3))[0]
        Conv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """
    (c, h, w), (channels, height, width) = student, teacher
    convolution: nn.Module
    if (h, w) == (2 * height, 2 * width):
        convolution = nn.Conv2d(c, channels, 3, stride=2, padding=1)
    elif (2 * h, 2 * w) == (height, width):
        convolution = nn.ConvTranspose2d(c, channels, 4, stride=2, padding=1)
    elif h >= height and w >= width:
        convolution = nn.Conv2d(c, channels, (1 + h - height, 1 + w - width))
    else:
        raise ValueError(
            f"no hint from features {tuple(teacher)} to smaller ones {tuple(student)}; take a later layer of the "
            "teacher or an earlier one of the student"
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


# Gradient maps


@contextmanager
def _batch_norm_fixed(model: nn.Module) -> Iterator[None]:
    """Batch norm uses its running statistics, so that the loss of an image depends on that image alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    try:
        for norm in norms:
            norm.eval()
        yield
    finally:
        for norm in norms:
            norm.train()


def _leaf(images: Tensor) -> Tensor:
    from payattn.models import unit_range  # there, because the networks' maps are made here

    return promote(unit_range(images)).detach().clone().requires_grad_()


def _sensitivity(model: nn.Module, x: Tensor, labels: Tensor, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Logits, and J; ``x`` is a leaf.  Full precision: a second derivative needs every digit."""
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        logits = promote(model(x * 1))  # a copy, as a first layer may work in place
        score = F.cross_entropy(logits, labels, reduction="sum")
        if not score.requires_grad:
            raise ValueError("the logits do not depend on the images by differentiable steps: does the model detach?")
        (gradient,) = torch.autograd.grad(score, x, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise ValueError("the logits do not depend on the images by differentiable steps: does the model round?")
    return logits, gradient


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor, create_graph: bool = False) -> Tensor:
    r"""How sensitive each image's loss is to its pixels, ``J_b = d CE(y_b, t_b) / d x_b``.

    The loss is the sum over the batch: its mean would make J smaller by the number of images.  Batch norm uses its
    running statistics, as in training mode J would mix the images of a batch.

    Args:
        model: maps images to logits (N, K); left as found, and without a gradient where ``create_graph`` is False.
        images: x, (N, 3, H, W), uint8 or float in [0, 1], or whatever float input the model takes.
        labels: t, int64 (N,).
        create_graph: keep J differentiable with respect to the weights, for a second backward pass.

    Returns:
        J, the shape of x, at least float32; one channel per colour, as in the paper.

    Raises:
        ValueError: a model whose logits do not depend on the images.

    Source: Attention Transfer, section 3.2; golden check 12 of the specification.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(2))
        >>> input_gradient(net, torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        tensor([[-0.2689,  0.2689]])
    """
    with _batch_norm_fixed(model):
        gradient = _sensitivity(model, _leaf(images), labels, create_graph)[1]
    return gradient if create_graph else gradient.detach()


def gradient_loss(student: Tensor, teacher: Tensor | None = None, form: str = "squared") -> Tensor:
    r"""Gradient-based attention transfer, ``1/B sum_b 1/2 ||J_S - J_T||^2``; without a teacher, the min-l2 penalty.

    - ``"squared"``: as above, the loss whose derivative the paper prints;
    - ``"paper"``: ``1/B sum_b 1/2 ||J_S - J_T||``, as the paper writes the loss;
    - ``"normalised"``: the mean square difference of J of unit length, as others match Jacobians.

    Args:
        student: J_S, (N, ...), with a graph for the second backward pass.
        teacher: J_T, the same shape; None is zero: double backpropagation (Drucker and LeCun 1992).
        form: as above.

    Returns:
        a scalar.  The teacher gets no gradient.

    Raises:
        ValueError: if the shapes differ; for ``"normalised"`` without a teacher, which would be a constant.

    Source: Attention Transfer, section 3.2; golden checks 12 and 13 of the specification.

    Example:
        >>> gradient_loss(torch.tensor([[3.0, 4.0]])), gradient_loss(torch.tensor([[3.0, 4.0]]), form="paper")
        (tensor(12.5000), tensor(2.5000))
    """
    choose("form", form, GRADIENT_FORMS)
    if teacher is None:
        if form == "normalised":
            raise ValueError("form='normalised' has length 1 without a teacher and teaches nothing; use 'squared'")
        teacher = torch.zeros_like(student)
    if student.shape != teacher.shape:
        raise ValueError(f"J must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if form == "normalised":
        return _distance(unit(student), unit(teacher.detach()), "code")
    difference = (promote(student) - promote(teacher.detach())).flatten(1)
    if form == "paper":
        return 0.5 * torch.linalg.vector_norm(difference, dim=1).mean()
    return 0.5 * difference.square().sum(dim=1).mean()


def flip(x: Tensor) -> Tensor:
    """Mirror left and right: reverse the last axis, (..., W).

    Example:
        >>> flip(torch.tensor([[1, 2, 3]]))
        tensor([[3, 2, 1]])
    """
    return x.flip(-1)


def symmetry_loss(gradient: Tensor, of_flipped: Tensor, form: str = "squared") -> Tensor:
    r"""Gradient maps should mirror as images do, ``1/B sum_b 1/2 ||J(x) - flip(J(flip(x)))||^2``; no teacher.

    Args:
        gradient: J of the images, (N, 3, H, W).
        of_flipped: J of the mirrored images; both get a gradient.
        form: ``"squared"`` or ``"paper"``, see ``gradient_loss``.

    Returns:
        a scalar.

    Raises:
        ValueError: if the shapes differ, or for an unknown form.

    Source: Attention Transfer, section 3.2; golden check 13 of the specification.

    Example:
        >>> symmetry_loss(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 1.0]]]]))
        tensor(0.)
    """
    choose("form", form, GRADIENT_FORMS[:2])
    if gradient.shape != of_flipped.shape:
        raise ValueError(f"J must have one shape, got {tuple(gradient.shape)} and {tuple(of_flipped.shape)}")
    return gradient_loss(gradient - flip(of_flipped), None, form)


# Reading the layers of any network


@contextmanager
def tap(model: nn.Module, layers: Sequence[str], copy: bool = False) -> Iterator[dict[str, Tensor]]:
    """Keep what named layers put out during one forward pass; afterwards the model is as it was.

    Args:
        model: any network.
        layers: names of its submodules, as in ``model.named_modules()``.
        copy: hand a copy on to the next layer, which may then work in place.

    Yields:
        a dict that is filled by the forward pass: layer name to features (N, C, H, W).

    Raises:
        ValueError: a name that is not there, with the candidates and their shapes; on leaving, a layer that was not
            called, was called twice, did not put out (N, C, H, W), or was changed in place behind our back.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with tap(net, ["0"]) as found:
        ...     _ = net(torch.zeros(2, 3, 5, 5))
        >>> found["0"].shape, len(net[0]._forward_hooks)
        (torch.Size([2, 8, 3, 3]), 0)
    """
    check_layers(model, layers)
    found: dict[str, Tensor] = {}
    calls = dict.fromkeys(layers, 0)
    versions: dict[str, int] = {}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, out: Any) -> Tensor | None:
            if not isinstance(out, Tensor) or out.ndim != 4:
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(f"layer {name!r} puts out {got}; a map needs features (N, C, H, W)")
            calls[name] += 1
            found[name] = out
            versions[name] = 0 if out.is_inference() else out._version
            return out.clone() if copy else None

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in calls]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for name, count in calls.items():
        if count != 1:
            raise ValueError(
                f"layer {name!r} was called {count} times in one forward pass; take one that is called once"
            )
        if not found[name].is_inference() and found[name]._version != versions[name]:
            raise ValueError(
                f"the output of layer {name!r} is changed in place by the layer behind it; take that one instead, or "
                "build it with inplace=False"
            )


def layer_shapes(model: nn.Module, size: Size = (32, 32)) -> dict[str, tuple[int, int, int]]:
    """The layers a map can be read from, and the shapes of their features, in the order of the first calls.

    Args:
        model: any network that takes images; it is left as found.
        size: (H, W) of the images to try it with, or (C, H, W) for other than three channels.

    Returns:
        layer name to (C, H, W); layers that put out anything else are missing.

    Example:
        >>> layer_shapes(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), size=(5, 7))
        {'0': (8, 3, 5)}
    """
    shapes: dict[str, tuple[int, int, int]] = {}

    def record(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, out: Any) -> None:
            if isinstance(out, Tensor) and out.ndim == 4:
                shapes.setdefault(name, (out.shape[1], out.shape[2], out.shape[3]))

        return hook

    some = next(model.parameters(), torch.zeros(()))
    handles = [part.register_forward_hook(record(name)) for name, part in model.named_modules() if name]
    try:
        with deciding(model), torch.no_grad():
            model(torch.zeros(1, *(3, *size)[-3:], dtype=some.dtype, device=some.device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def check_layers(model: nn.Module, layers: Sequence[str], who: str = "the network", size: Size = (32, 32)) -> None:
    """See that a network has layers of these names.

    Args:
        model: any network.
        layers: names of its submodules.
        who: what an error calls the network.
        size: of the images that the shapes in the error are for, see ``layer_shapes``.

    Raises:
        TypeError: one string instead of several.
        ValueError: a name that is not there, with the nearest ones and the candidates with their shapes.

    Example:
        >>> check_layers(nn.Sequential(nn.Conv2d(3, 8, 3)), ["1"])
        Traceback (most recent call last):
        ValueError: the network has no layer '1'; layers at 32x32: 0 (8, 30, 30)
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got the text {layers!r}; write [{layers!r}]")
    names = [name for name, _ in model.named_modules() if name]
    wrong = [name for name in layers if name not in names]
    if not wrong:
        return
    try:
        shapes = layer_shapes(model, size)
    except (RuntimeError, ValueError, TypeError):  # it does not take images of that size: names must do
        shown, where = {name: name for name in names}, ""
    else:
        shown, where = {name: f"{name} {shape}" for name, shape in shapes.items()}, f" at {size[-2]}x{size[-1]}"
    near = get_close_matches(wrong[0], list(shown), n=3, cutoff=0.5)
    shallow = sorted((name for name in shown if name not in near), key=lambda name: name.count("."))
    listed = [shown[name] for name in [*near, *shallow][:SHOWN]]
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    more = ", ... (all: payattn.transfer.layer_shapes(model))" if len(shown) > SHOWN else ""
    raise ValueError(f"{who} has no layer {wrong[0]!r}{hint} layers{where}: {', '.join(listed)}{more}")


@contextmanager
def deciding(model: nn.Module, learning: bool = False) -> Iterator[None]:
    """A network as it decides: in evaluation mode, its parameters without gradients; then everything is as it was.

    Args:
        model: any network.
        learning: leave the parameters their ``requires_grad``.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with deciding(net):
        ...     net[1].training, net[0].weight.requires_grad
        (False, False)
        >>> net[1].training, net[0].weight.requires_grad
        (True, True)
    """
    modes = [(part, part.training) for part in model.modules()]
    learned = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.eval()
        if not learning:
            model.requires_grad_(False)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for p, required in learned:
            p.requires_grad_(required)


def _digest(model: nn.Module) -> str:
    """sha256 of all parameters and buffers."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def paired(layers: Sequence[str | Sequence[str]]) -> list[tuple[str, str]]:
    """Names of layers, or pairs of them, as pairs (teacher's layer, student's layer).

    Raises:
        TypeError: one string instead of several.
        ValueError: something else than names and pairs, or a layer of the student that stands twice.

    Example:
        >>> paired(["group0", ("group1", "stage1")])
        [('group0', 'group0'), ('group1', 'stage1')]
    """
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names or pairs, got the text {layers!r}; write [{layers!r}]")
    both = [(item, item) if isinstance(item, str) else tuple(item) for item in layers]
    if any(len(item) != 2 for item in both):
        raise ValueError(f"layers must be names or pairs (teacher's layer, student's layer), got {layers!r}")
    if len({item[1] for item in both}) < len(both):
        raise ValueError(f"each layer of the student may stand once, got {layers!r}")
    return [(item[0], item[1]) for item in both]


def attention_maps(
    model: nn.Module, images: Tensor, layers: Sequence[str], p: float = 2.0, reduce: str = "sum", batch_size: int = 500
) -> dict[str, Tensor]:
    """The maps that a network would transfer, of unit length, for a set of images; ``attention_map`` of each layer.

    Args:
        model: any network; it is read in evaluation mode and left as found.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        layers: names, as in ``model.named_modules()``.
        p, reduce: see ``activation_map``.
        batch_size: images at a time.

    Returns:
        layer name to (N, H_j, W_j), on the CPU.

    Raises:
        ValueError: layers that are not there, with the candidates; no images.

    Example:
        >>> from payattn.models import create
        >>> maps = attention_maps(create("wrn-10-1", width=0.25), torch.rand(3, 3, 16, 16), ["group2"])
        >>> maps["group2"].shape, bool(maps["group2"].square().sum((1, 2)).allclose(torch.ones(3)))
        (torch.Size([3, 4, 4]), True)
    """
    if not len(images):
        raise ValueError("attention_maps needs at least one image")
    check_layers(model, layers)
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    device = next(model.parameters(), images).device
    for some in images.split(batch_size):
        with deciding(model), torch.no_grad(), tap(model, list(parts)) as found:
            model(some.to(device))
        for name, features in found.items():
            parts[name].append(attention_map(features, p, reduce).cpu())
    return {name: torch.cat(maps) for name, maps in parts.items()}


# Objectives: what a training loop calls


class Objective:
    """A loss that needs more than logits and labels; ``payattn.fit(student, train, loss=objective)`` takes one.

    A loop calls ``start_epoch`` before each epoch and ``loss`` for each batch, inside ``with objective:``, where the
    parameters of the objective, if it has any, are part of the student: optimiser and checkpoints see them.

    Attributes:
        beta_now: the weight of the transfer in this epoch; ``start_epoch`` sets it.
        last: the parts of the last loss by name, without weights, detached.

    Example:
        >>> issubclass(Distill, Objective) and issubclass(GradientTransfer, Objective)
        True
    """

    student: nn.Module
    adapters: nn.Module | None = None

    def __init__(self, beta: float, schedule: str = "constant", milestones: Sequence[int] = (), start: int = 1) -> None:
        if not beta >= 0:
            raise ValueError(f"beta must be 0 or more, got {beta}")
        beta_schedule(schedule, beta, 1, 1, milestones)  # raises where they do not fit
        if start < 1:
            raise ValueError(f"start is an epoch, counted from 1, got {start}")
        self.beta, self.schedule, self.milestones, self.start = float(beta), schedule, tuple(milestones), start
        self.beta_now = self.beta
        self.last: dict[str, Tensor] = {}

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Set ``beta_now`` for one epoch, counted from 1."""
        self.beta_now = beta_schedule(self.schedule, self.beta, epoch, epochs, self.milestones, self.start)

    def loss(
        self, images: Tensor, labels: Tensor, *, model: nn.Module | None = None, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of one batch, a scalar, and the student's logits (N, K).

        Args:
            images: (N, 3, H, W), uint8 or float in [0, 1]; student and teacher see the same ones.
            labels: int64 (N,).
            model: what to call in place of the student, such as a wrapper for several processes around it.
            index: of the images in the cached set, see ``Distill.cache``.
        """
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to belong to a run; plain data."""
        settings = ("beta", "schedule", "start")
        return {
            "objective": type(self).__name__, "milestones": list(self.milestones),
            **{name: getattr(self, name) for name in settings},
        }  # fmt: skip

    def parameters(self) -> list[nn.Parameter]:
        """What the objective learns itself; ``fit`` trains it, an own loop gives it to its optimiser."""
        return [] if self.adapters is None else list(self.adapters.parameters())

    def __enter__(self) -> Objective:
        if distributed.size() > 1 and self._alone():
            raise ValueError(f"{self._alone()} for one process; start without torchrun")
        if self.adapters is not None and self.parameters():
            some = next(self.student.parameters())
            self.student.add_module("transfer_adapters", self.adapters.to(some.device))
        return self

    def _alone(self) -> str:
        """What of this objective several processes cannot do together; empty if they can."""
        return ""

    def __exit__(self, *exception: object) -> None:
        if hasattr(self.student, "transfer_adapters"):
            del self.student.transfer_adapters

    def _model(self, model: nn.Module | None) -> nn.Module:
        if model is None or model is self.student:
            return self.student
        if all(part is not self.student for part in model.modules()):
            raise ValueError("this objective was made for another student; make one for the network that is trained")
        return model

    def _sum(self, classification: Tensor, transfer: Mapping[str, Tensor]) -> Tensor:
        self.last = {name: value.detach() for name, value in [("classification", classification), *transfer.items()]}
        if torch.is_grad_enabled():
            for name, value in transfer.items():
                if not value.requires_grad:
                    raise ValueError(
                        f"the transfer loss of {name!r} has no gradient: everything before that layer of the student "
                        "is frozen or detached; leave the pair out, or let those layers learn"
                    )
        return classification + self.beta_now * sum(transfer.values(), torch.zeros_like(classification))


class Taught(NamedTuple):
    """What the teacher gives for some images: logits where distillation needs them, one tensor per pair of layers.

    Example:
        >>> Taught(None, {"group0": torch.zeros(2, 8, 8)}).layers["group0"].shape
        torch.Size([2, 8, 8])
    """

    logits: Tensor | None
    layers: dict[str, Tensor]


class _Cache(NamedTuple):
    images: Tensor
    prints: Tensor  # sorted
    order: Tensor
    taught: Taught


def _fingerprints(images: Tensor) -> Tensor:
    """One int64 per image: its bytes times fixed random numbers.  What it finds is compared with the image itself."""
    raw = images.contiguous().flatten(1).view(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (raw.shape[1],), generator=generator).to(raw.device)
    return torch.cat([(part.long() * weights).sum(dim=1) for part in raw.split(256)])


def _bytes(*values: Tensor | None) -> int:
    return sum(value.numel() * value.element_size() for value in values if value is not None)


class Distill(Objective):
    r"""Train a student on its labels and on its teacher's layers, ``L = L_KD(alpha, tau) + beta sum_j l_j``.

    The teacher is read in evaluation mode without gradients, whatever modes and flags it has, and gets them back; it
    is moved to where the images are.

    ``payattn.fit(student, train, loss=Distill(teacher, student, layers))`` trains the student; several processes do so
    together where the loss is a mean over the batch and has no adapters.

    Args:
        teacher, student: any two networks from images to logits, without a parameter in common.
        layers: names of layers in both, or pairs (teacher's layer, student's layer); () is distillation alone.
        beta: weight of the transfer loss; 1000 in the authors' code, whose loss is a mean over positions.
        kd: alpha, the weight of the softened predictions against the labels, see ``kd_loss``; 0 is cross-entropy.
        temperature, kd_form: see ``kd_loss``.
        transfer: ``"attention"``, see ``at_loss``; ``"activation"``, see ``activation_loss``; ``"hint"``, see
            ``hint_loss``, for which 100 is the usual beta.  The last two have adapters, which learn with the student.
        p, reduce, form, resize: see ``at_loss``.
        schedule, milestones, start: how beta changes, see ``beta_schedule``.
        size: (H, W) of the images, for the adapters of ``"hint"`` and for the shapes in an error.
        seed: of the adapters' first weights.

    Raises:
        ValueError: layers that are not there, with the candidates; a teacher that shares parameters with the student;
            nothing to transfer; other values outside their range.

    Source: Attention Transfer, eq. (2); authors' code; specification, 2.3, 2.6 and 4.1.

    Example:
        >>> from payattn.models import create
        >>> teacher, student = create("wrn-10-1", width=0.5), create("wrn-10-1", width=0.25)
        >>> distill = Distill(teacher, student, layers=["group0", "group1", "group2"], kd=0.9)
        >>> loss, logits = distill.loss(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]))
        >>> loss.backward()
        >>> logits.shape, list(distill.last), teacher.head.weight.grad is None
        (torch.Size([4, 10]), ['classification', 'group0', 'group1', 'group2'], True)
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, layers: Sequence[str | tuple[str, str]] = (), *,
        beta: float = 1e3, kd: float = 0.0, temperature: float = 4.0, kd_form: str = "current",
        transfer: str = "attention", p: float = 2.0, reduce: str = "sum", form: str = "code",
        resize: str = "smaller", schedule: str = "constant", milestones: Sequence[int] = (), start: int = 1,
        size: Size = (32, 32), seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(beta, schedule, milestones, start)
        self.teacher, self.student, self.size = teacher, student, tuple(size)
        self.kd, self.temperature, self.p = _check_share("kd", kd), temperature, p
        self.kd_form = choose("kd_form", kd_form, KD_FORMS)
        self.transfer = choose("transfer", transfer, TRANSFERS)
        self.reduce = choose("reduce", reduce, REDUCTIONS)
        self.form = choose("form", form, FORMS)
        self.resize = choose("resize", resize, RESIZES)
        if not temperature > 0 or not p >= 1:
            raise ValueError(f"temperature must be positive and p at least 1, got {temperature} and {p}")
        self.pairs = self._paired(layers)
        if not self.pairs and not kd:
            raise ValueError("nothing to transfer: name layers, or give kd a weight, as in kd=0.9")
        own = {id(p) for p in student.parameters()}
        if teacher is student or any(id(p) in own for p in teacher.parameters()):
            raise ValueError("teacher and student share parameters; copy.deepcopy(student) makes a teacher of its own")
        if self.pairs and transfer != "attention":
            self.adapters = self._make_adapters(seed)
        self._cache: _Cache | None = None

    def _paired(self, layers: Sequence[str | tuple[str, str]]) -> dict[str, str]:
        """The teacher's layer of each of the student's."""
        both = paired(layers)
        check_layers(self.teacher, [item[0] for item in both], "the teacher", self.size)
        check_layers(self.student, [item[1] for item in both], "the student", self.size)
        return {item[1]: item[0] for item in both}

    def _make_adapters(self, seed: int) -> nn.ModuleList:
        taught, learned = layer_shapes(self.teacher, self.size), layer_shapes(self.student, self.size)
        some = next(self.student.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            parts = [
                hint_adapter(learned[mine], taught[theirs])
                if self.transfer == "hint"
                else adapter(learned[mine][0], taught[theirs][0])
                for mine, theirs in self.pairs.items()
            ]
        return nn.ModuleList(parts).to(device=some.device, dtype=some.dtype)

    def identity(self) -> dict[str, Any]:
        names = ("kd", "temperature", "kd_form", "transfer", "p", "reduce", "form", "resize", "pairs")
        teacher = {"spec": getattr(self.teacher, "spec", None), "digest": _digest(self.teacher)}
        return super().identity() | {"teacher": teacher} | {name: getattr(self, name) for name in names}

    def _alone(self) -> str:
        if self.form == "paper-squared":
            return "form='paper-squared' sums over the batch and is"
        return "" if self.adapters is None else f"transfer={self.transfer!r} has adapters and is"

    def _ask(self, images: Tensor) -> Taught:
        """What the teacher says of images, all that a loss needs of it and no more."""
        with deciding(self.teacher), torch.no_grad(), tap(self.teacher, list(self.pairs.values())) as found:
            logits = self.teacher(images)
        attention = self.transfer == "attention"
        layers = {
            mine: attention_map(found[theirs], self.p, self.reduce) if attention else found[theirs]
            for mine, theirs in self.pairs.items()
        }
        return Taught(logits if self.kd else None, layers)

    def taught(self, images: Tensor, index: Tensor | None = None) -> Taught:
        """What the teacher gives for images, from the cache where there is one.

        Args:
            images: (N, 3, H, W).
            index: of the images in the cached set; None finds them by their pixels.

        Raises:
            ValueError: images that are not those of the cache, as under augmentation.
        """
        if self._cache is None:
            if index is not None:
                raise ValueError("index= speaks of a cached set, and nothing is cached; call cache(images) first")
            self.teacher.to(images.device)
            return self._ask(images)
        cache = self._cache
        if index is None:
            prints = _fingerprints(images).to(cache.prints.device)
            index = cache.order[torch.searchsorted(cache.prints, prints).clamp_max(len(cache.prints) - 1)]
        index = index.to(cache.images.device)
        known = cache.images[index]
        if known.shape != images.shape or not torch.equal(known, images.to(known.device, known.dtype)):
            raise ValueError(
                "these are not the images of the cache: a cache is for images without augmentation, which are the same "
                "in every epoch; leave augmentation out, or call forget()"
            )
        index = index.to(cache.prints.device)
        logits = None if cache.taught.logits is None else cache.taught.logits[index].to(images.device)
        return Taught(logits, {name: kept[index].to(images.device) for name, kept in cache.taught.layers.items()})

    def cache(self, images: Any, batch_size: int = 500, limit: float = float("inf")) -> int:
        """Let the teacher see a set once, and remember what it says: exact, as long as nothing augments the images.

        A batch is found again by its index, or by its pixels; either way each image is compared with the one that
        was cached.  Computed in full precision, so a run with ``amp`` differs from one without cache by rounding.
        Memory: 4 bytes times images times ``(sum_j H_j W_j + K)`` for maps and logits, ``sum_j C_j H_j W_j`` where
        full features are transferred, and 16 bytes per image.  The images themselves are not copied.

        Args:
            images: (N, 3, H, W), uint8 or float, or a data set that has them as ``images``.
            batch_size: images at a time.
            limit: bytes; where it would take more, nothing is kept.

        Returns:
            the bytes it takes, on the teacher's device; 0 where that is more than the limit.

        Raises:
            ValueError: no images.

        Example:
            >>> from payattn.models import create
            >>> distill = Distill(create("wrn-10-1", width=0.25), create("wrn-10-1", width=0.25), ["group2"])
            >>> distill.cache(torch.zeros(3, 3, 16, 16)) == 3 * (4 * 4 * 4 + 16)
            True
        """
        images = getattr(images, "images", images)
        if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
            raise ValueError("cache needs images (N, 3, H, W), or a data set that has them as .images")
        self.forget()
        device = next(self.teacher.parameters(), images).device
        parts: list[Taught] = []
        with torch.autocast(device.type, enabled=False):
            for some in images.split(batch_size):
                parts.append(self._ask(some.to(device)))
                if _bytes(parts[0].logits, *parts[0].layers.values()) * len(images) > limit * len(images[:batch_size]):
                    return 0
        logits = torch.cat([part.logits for part in parts if part.logits is not None]) if self.kd else None
        layers = {name: torch.cat([part.layers[name] for part in parts]) for name in self.pairs}
        prints, order = _fingerprints(images).to(device).sort()
        self._cache = _Cache(images, prints, order, Taught(logits, layers))
        return _bytes(prints, order, logits, *layers.values())

    def forget(self) -> None:
        """Give the memory of the cache back; the teacher is asked for every batch again."""
        self._cache = None

    def distances(self, features: Mapping[str, Tensor], taught: Taught) -> dict[str, Tensor]:
        """The transfer loss of each pair, without beta, by the student's layer.

        Args:
            features: of the student's layers, (N, C, H, W), by name.
            taught: what ``taught`` returns for the same images.
        """
        losses = {}
        for k, (name, kept) in enumerate(taught.layers.items()):
            if self.transfer == "attention":
                mine = _scaled_map(features[name], self.p, self.reduce)
                losses[name] = map_loss(mine, kept, self.form, self.resize)
                continue
            adapted = self.adapters[k](features[name])  # type: ignore[index]
            losses[name] = (
                hint_loss(adapted, kept) if self.transfer == "hint" else activation_loss(adapted, kept, self.form)
            )
        return losses

    def loss(
        self, images: Tensor, labels: Tensor, *, model: nn.Module | None = None, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of one batch, a scalar, and the student's logits (N, K), see ``Objective.loss``.

        The teacher is not asked where both kd and the beta of this epoch are 0: that is plain cross-entropy.
        """
        model = self._model(model)
        with tap(self.student, list(self.pairs)) as found:
            logits = model(images)
        transfers = bool(self.pairs) and self.beta_now > 0
        taught = self.taught(images, index) if self.kd or transfers else Taught(None, {})
        if taught.logits is None:
            classification = F.cross_entropy(promote(logits), labels)
        else:
            classification = kd_loss(logits, taught.logits, labels, self.temperature, self.kd, self.kd_form)
        return self._sum(classification, self.distances(found, taught) if transfers else {}), logits


class GradientTransfer(Objective):
    r"""Train a student on its labels and on gradient maps, by a second backward pass; see ``gradient_loss``.

    - ``"gradient"``: ``CE + beta/2 ||J_S - J_T||^2``, J of student and teacher on the same images;
    - ``"min-l2"``: ``CE + beta/2 ||J_S||^2``, without a teacher;
    - ``"symmetry"``: ``CE + beta/2 ||J_S(x) - flip J_S(flip x)||^2``, without a teacher.

    J is computed in full precision and with the running statistics of batch norm; a student with batch norm costs a
    second forward pass for it.  The paper avoids batch norm here: take ``create("nin-thin-nobn")``.

    Args:
        student: a network from images to logits; without ReLU it has second derivatives everywhere, with ReLU almost.
        teacher: for ``"gradient"``.
        kind: as above.
        beta: its value in the paper is not known; try 0.01 to 10 on a validation split.
        form: see ``gradient_loss``; ``"normalised"`` is for ``"gradient"`` alone.
        output_weight: for ``"symmetry"``, weight of ``1/B sum_b 1/2 ||y(x) - y(flip x)||^2``, a term that the paper's
            text has and its equation has not.
        schedule, milestones, start: how beta changes, see ``beta_schedule``.

    Raises:
        ValueError: a teacher that is missing or not needed, a form that does not fit, values outside their range.

    Source: Attention Transfer, section 3.2; specification, 2.4 and 2.5.

    Example:
        >>> from payattn.models import create
        >>> student = create("nin-thin-nobn", width=0.1)
        >>> penalised = GradientTransfer(student, kind="min-l2", beta=1)
        >>> loss, logits = penalised.loss(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
        >>> loss.backward()
        >>> student.head.weight.grad is not None
        True
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None = None, *, kind: str = "gradient", beta: float = 1.0,
        form: str = "squared", output_weight: float = 0.0, schedule: str = "constant",
        milestones: Sequence[int] = (), start: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(beta, schedule, milestones, start)
        self.kind = choose("kind", kind, GRADIENT_KINDS)
        self.form = choose("form", form, GRADIENT_FORMS)
        if (teacher is None) == (kind == "gradient"):
            raise ValueError(f"kind={kind!r} {'needs a teacher' if teacher is None else 'has no teacher'}")
        if form == "normalised" and kind != "gradient":
            raise ValueError(f"form='normalised' belongs to kind='gradient', got kind={kind!r}; use 'squared'")
        if not output_weight >= 0 or (output_weight and kind != "symmetry"):
            raise ValueError(
                f"output_weight must be 0 or more, and belongs to kind='symmetry'; got {output_weight} and {kind!r}"
            )
        if teacher is student:
            raise ValueError("teacher and student are one network; copy.deepcopy(student) makes a teacher of its own")
        self.student, self.teacher, self.output_weight = student, teacher, output_weight

    def identity(self) -> dict[str, Any]:
        names = ("kind", "form", "output_weight")
        teacher = self.teacher and {"spec": getattr(self.teacher, "spec", None), "digest": _digest(self.teacher)}
        return super().identity() | {"teacher": teacher} | {name: getattr(self, name) for name in names}

    def _alone(self) -> str:
        return "the second backward pass of GradientTransfer is"

    def loss(
        self, images: Tensor, labels: Tensor, *, model: nn.Module | None = None, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of one batch, a scalar, and the student's logits (N, K), see ``Objective.loss``."""
        model = self._model(model)
        if not self.beta_now:
            logits = model(images)
            return self._sum(F.cross_entropy(promote(logits), labels), {}), logits
        norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        # first, as it moves the running statistics, which J's graph must find as they were when it was made
        learning = model(images) if any(norm.training for norm in norms) else None
        with _batch_norm_fixed(model):
            logits, gradient = _sensitivity(model, _leaf(images), labels, create_graph=True)
            transfer = self._transfer(model, images, labels, logits, gradient)
        logits = logits if learning is None else learning
        return self._sum(F.cross_entropy(promote(logits), labels), {self.kind: transfer}), logits

    def _transfer(self, model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
        if self.kind == "min-l2":
            return gradient_loss(gradient, None, self.form)
        if self.teacher is not None:
            with deciding(self.teacher.to(images.device)):
                return gradient_loss(gradient, input_gradient(self.teacher, images, labels), self.form)
        mirrored, of_flipped = _sensitivity(model, _leaf(flip(images)), labels, create_graph=True)
        total = symmetry_loss(gradient, of_flipped, self.form)
        if self.output_weight:
            total = total + self.output_weight * 0.5 * (logits - mirrored).square().sum(dim=1).mean()
        return total
