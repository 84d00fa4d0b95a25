"""Adversarial images: what a change too small to see does to a decision, and whether the measurement can be trusted.

A budget ``epsilon`` bounds the change of every pixel of an RGB image in [0, 1] (the L-infinity norm), whatever the
model's first layer makes of the pixels: attacks differentiate through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from payattn.attention import choose
from payattn.data import ImageSet, batches
from payattn.maps import check_labels, device_of, frozen, image_gradient, logits_of, pixels_of
from payattn.query import maps_with_sum_one, total_variation

ATTACKS = ("fgsm", "pgd")
LARGE = 0.5


def _budget(epsilon: float) -> float:
    if not 0 <= epsilon <= 1:
        raise ValueError(
            f"epsilon is the largest change of a pixel in [0, 1], got {epsilon}; eight of 255 grey levels are 8 / 255"
        )
    return float(epsilon)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    r"""How far all other classes together are ahead of the true one.

    .. math:: m = \log \sum_{k \ne y} \exp z_k - z_y

    The cross-entropy is a rising function of it, :math:`L = \log(1 + e^m)`, so both have gradients of one direction
    and sign.  For a confident network the gradient of L rounds to zero in float32, and an attack on L would stand
    still; that of m does not.

    Args:
        logits: (N, C), C at least 2.
        labels: int64 (N,).

    Returns:
        (N,); positive where the true class has less than half of the probability.

    Example:
        >>> margin(torch.tensor([[1.0, 0.0], [200.0, 0.0]]), torch.tensor([1, 0]))
        tensor([   1., -200.])
    """
    true = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).logsumexp(1) - logits[true]


def _uphill(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the margin of each image; the model must be frozen."""
    pixels = pixels.detach().requires_grad_()
    logits = logits_of(model, pixels.clone())  # a clone, as a first layer may work in place
    check_labels(labels, logits)
    if logits.shape[1] < 2:
        raise ValueError("an attack needs a model with two classes or more, got one")
    return image_gradient(margin(logits, labels.to(logits.device)), pixels).detach()


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    r"""Fast gradient sign method: one step of full size up the loss.

    .. math:: x' = \mathrm{clip}_{[0, 1]}\left(x + \epsilon \, \mathrm{sign} \nabla_x L(x, y)\right)

    with L the cross-entropy, whose gradient has the sign of that of :func:`margin`.

    Args:
        model: maps images to logits; left as found, without gradients on its parameters.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        labels: true classes, int64 (N,).
        epsilon: largest change of a pixel, from 0 to 1.

    Returns:
        (N, 3, H, W) in [0, 1], at least float32, at most epsilon from ``images``.

    Raises:
        TypeError, ValueError: images, labels, a budget or a model that do not fit.

    Source: Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, -1.0, 2.0], [0.0, 0.0, 2.0]]))
        >>> fgsm(net, torch.full((1, 3, 1, 1), 0.5), torch.tensor([0]), epsilon=0.1).flatten()
        tensor([0.4000, 0.6000, 0.5000])
    """
    epsilon = _budget(epsilon)
    with frozen(model):
        pixels = pixels_of(images)
        return (pixels + epsilon * _uphill(model, pixels, labels).sign()).clamp(0, 1)


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int = 10, step_size: float | None = None,
    random_start: bool = True, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    r"""Projected gradient descent: many small signed steps up the loss, each kept within the budget.

    .. math:: x^{t+1} = \mathrm{clip}_{[0, 1] \cap [x - \epsilon, x + \epsilon]}
              \left(x^t + \alpha \, \mathrm{sign} \nabla_x L(x^t, y)\right)

    Args:
        model: maps images to logits; left as found, without gradients on its parameters.
        images: (N, 3, H, W), uint8 or float in [0, 1].
        labels: true classes, int64 (N,).
        epsilon: largest change of a pixel, from 0 to 1.
        steps: number of steps, 1 or more.
        step_size: alpha; None is 2.5 epsilon / steps, with which every point of the budget can be reached.
        random_start: begin at a random point of the budget, not at the image.
        generator: of the random start; None is a new one with seed 0.

    Returns:
        (N, 3, H, W) in [0, 1], at least float32, at most epsilon from ``images``: the last step.

    Raises:
        TypeError, ValueError: images, labels, a budget, steps or a model that do not fit.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, -1.0, 2.0], [0.0, 0.0, 1.0]]))
        >>> pgd(net, torch.full((1, 3, 1, 1), 0.5), torch.tensor([0]), epsilon=0.1).flatten()
        tensor([0.4000, 0.6000, 0.4000])
    """
    epsilon = _budget(epsilon)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number, 1 or more, got {steps!r}")
    size = 2.5 * epsilon / steps if step_size is None else step_size
    if not size >= 0:
        raise ValueError(f"step_size must be 0 or more, in pixels of [0, 1], got {step_size}")
    with frozen(model):
        pixels = pixels_of(images)
        low, high = (pixels - epsilon).clamp(min=0), (pixels + epsilon).clamp(max=1)
        changed = pixels
        if random_start:
            source = torch.Generator().manual_seed(0) if generator is None else generator
            noise = torch.rand(pixels.shape, generator=source, device=source.device).to(pixels)
            changed = (pixels + epsilon * (2 * noise - 1)).clamp(low, high)
        for _ in range(steps):
            changed = (changed + size * _uphill(model, changed, labels).sign()).clamp(low, high)
        return changed


def _decisions(outputs: Tensor) -> Tensor:
    if outputs.ndim == 2:
        return outputs.argmax(1)
    if outputs.ndim != 1 or outputs.is_floating_point():
        raise ValueError(f"give logits (N, C) or predicted classes (N,), got {outputs.dtype} {tuple(outputs.shape)}")
    return outputs


def fooling_rate(before: Tensor, after: Tensor) -> float:
    r"""The share of images whose predicted class changes, right or wrong.

    .. math:: \frac{1}{N} \sum_n [\arg\max_c z_c(x_n) \ne \arg\max_c z_c(x'_n)]

    Args:
        before, after: logits (N, C) or predicted classes (N,), of the images and of their changed versions.

    Raises:
        ValueError: no image, different numbers of them, or neither logits nor classes.

    Source: Learn To Pay Attention, section 5 (adversarial images).

    Example:
        >>> fooling_rate(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0]))
        0.25
    """
    one, two = _decisions(before), _decisions(after)
    if one.shape != two.shape or not len(one):
        raise ValueError(f"before and after must be of the same images, one or more, got {len(one)} and {len(two)}")
    return (one != two).double().mean().item()


def _decide(model: nn.Module, images: Tensor) -> Tensor:
    with frozen(model, gradients=False):
        return logits_of(model, images).argmax(1)


def _measure(
    model: nn.Module, data: ImageSet, attack: str, epsilon: float, crafted_on: nn.Module | None = None,
    batch_size: int = 250, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Accuracy of a model and share of changed decisions on a set under "fgsm", "pgd" or "noise"."""
    if not len(data):
        raise ValueError(f"the data set {data.name!r} is empty, so nothing can be measured on it")
    epsilon, source = _budget(epsilon), model if crafted_on is None else crafted_on
    home, workshop = device_of(model), device_of(source)
    generator = torch.Generator().manual_seed(seed)
    before, after = [], []
    for images, labels in batches(data, batch_size):
        pixels, labels = pixels_of(images.to(workshop)), labels.to(workshop)
        if attack == "noise":
            signs = torch.randint(0, 2, pixels.shape, generator=generator).to(pixels) * 2 - 1
            changed = (pixels + epsilon * signs).clamp(0, 1)
        elif attack == "fgsm":
            changed = fgsm(source, pixels, labels, epsilon)
        else:
            changed = pgd(source, pixels, labels, epsilon, generator=generator)
        before.append(_decide(model, pixels.to(home)))
        after.append(_decide(model, changed.to(home)))
    decided = torch.cat(after)
    accuracy = (decided == data.labels.to(home)).double().mean().item()
    return {"accuracy": accuracy, "fooled": fooling_rate(torch.cat(before), decided)}


def curve(
    model: nn.Module, data: ImageSet, epsilons: Sequence[float], attack: str = "fgsm",
    crafted_on: nn.Module | None = None, *, batch_size: int = 250, seed: int = 0,
) -> list[dict[str, float]]:  # fmt: skip
    """Accuracy and fooling rate of a model under attacks of growing size.

    Args:
        model: the network that is judged.
        data: images and true labels.
        epsilons: budgets, each from 0 to 1; Learn To Pay Attention's grid is not published, ours is
            {1, 2, 4, 8, 16} / 255.
        attack: ``"fgsm"`` or ``"pgd"`` (with the defaults of :func:`pgd`).
        crafted_on: another network whose gradients make the images, for a transfer attack; None is ``model`` itself.
        batch_size: images at a time.
        seed: of the random starts of PGD.

    Returns:
        One dict per budget: ``epsilon``, ``accuracy`` (0 to 1) and ``fooled``, see :func:`fooling_rate`.

    Raises:
        ValueError: an unknown attack, an empty set, or a budget out of range.

    Source: Learn To Pay Attention, section 5 (adversarial images).

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> images = torch.tensor([[120, 100, 0], [250, 0, 0]], dtype=torch.uint8).view(2, 3, 1, 1)
        >>> data = ImageSet(images, torch.tensor([0, 0]), ("red", "green"))
        >>> curve(net, data, [0, 20 / 255])[1]["accuracy"]
        0.5
    """
    choose("attack", attack, ATTACKS)
    options: dict[str, Any] = {"crafted_on": crafted_on, "batch_size": batch_size, "seed": seed}
    return [{"epsilon": float(e), **_measure(model, data, attack, e, **options)} for e in epsilons]


def masking_check(
    model: nn.Module, data: ImageSet, epsilon: float, *, crafted_on: nn.Module | None = None, slack: float = 0.01,
    batch_size: int = 250, seed: int = 0,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Is a network robust, or are its gradients of no use to an attacker?  Five signs of masked gradients.

    Each sign compares two numbers of which one must not exceed the other by more than ``slack``:

    - ``gradient``: the share of images whose gradient is zero everywhere; it must be none.
    - ``noise``: accuracy under FGSM against that under random signs of the same size; a gradient must beat chance.
    - ``pgd``: accuracy under PGD against that under FGSM; many steps must beat one.
    - ``large``: accuracy under PGD with a budget of 0.5, which can make every image grey, against the share of the
      commonest label, which is what guessing achieves.
    - ``transfer``: accuracy under the network's own PGD against that under PGD on ``crafted_on``; knowing the network
      must not harm the attacker.

    Args:
        model: the network that is judged.
        data: images and true labels.
        epsilon: budget of all but ``large``.
        crafted_on: another network for ``transfer``; without it that sign has the verdict None.
        slack: difference that counts as none.
        batch_size: images at a time.
        seed: of the noise and the random starts.

    Returns:
        Sign to ``{"claim", "value", "bound", "passed"}``: what should hold in words, the two numbers, and whether
        ``value <= bound + slack``, or None where it was not measured (then both numbers are None as well).

    Raises:
        ValueError: an empty set or a budget out of range.

    Source: Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, section 3.1.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> images = torch.tensor([[120, 100, 0], [0, 250, 0]], dtype=torch.uint8).view(2, 3, 1, 1)
        >>> checked = masking_check(net, ImageSet(images, torch.tensor([0, 1]), ("red", "green")), epsilon=0.1)
        >>> {sign: verdict["passed"] for sign, verdict in checked.items()}
        {'gradient': True, 'noise': True, 'pgd': True, 'large': True, 'transfer': None}
    """
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}

    def accuracy(attack: str, budget: float = epsilon, source: nn.Module | None = None) -> float:
        return _measure(model, data, attack, budget, source, **options)["accuracy"]

    fast, many = accuracy("fgsm"), accuracy("pgd")
    commonest = data.labels.bincount().max().item() / len(data)
    signs: dict[str, tuple[str, float, float | None]] = {
        "gradient": ("no image has a gradient that is zero everywhere", _without_gradient(model, data, batch_size), 0),
        "noise": ("FGSM leaves no more accuracy than random signs", fast, accuracy("noise")),
        "pgd": ("PGD leaves no more accuracy than FGSM", many, fast),
        "large": (f"PGD with {LARGE} leaves no more accuracy than guessing", accuracy("pgd", LARGE), commonest),
        "transfer": (
            "its own gradients leave no more accuracy than another network's", many,
            None if crafted_on is None else accuracy("pgd", epsilon, crafted_on),
        ),
    }  # fmt: skip
    return {
        sign: {"claim": claim, "value": value, "bound": bound, "passed": value <= bound + slack}
        if bound is not None
        else {"claim": f"{claim} (not measured: give crafted_on=)", "value": None, "bound": None, "passed": None}
        for sign, (claim, value, bound) in signs.items()
    }


def _without_gradient(model: nn.Module, data: ImageSet, batch_size: int) -> float:
    """The share of images whose gradient is zero everywhere."""
    device, still = device_of(model), 0
    with frozen(model):
        for images, labels in batches(data, batch_size):
            gradient = _uphill(model, pixels_of(images.to(device)), labels.to(device))
            still += int((gradient == 0).flatten(1).all(1).sum())
    return still / len(data)


def attention_shift(model: nn.Module, images: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
    r"""How much of a network's attention an attack moves to other places.

    .. math:: \tfrac{1}{2} \sum_i |a_i(x) - a_i(x')|

    Maps that do not sum to one, such as sigmoid maps, are first divided by their sum.

    Args:
        model: called as ``model(images, return_maps=True)``; left as found.
        images, adversarial: (N, 3, H, W), uint8 or float in [0, 1].

    Returns:
        Level to float (N,), from 0 (the same map) to 1 (no place in common); see
        :func:`payattn.query.total_variation`.

    Raises:
        TypeError: a model without maps.
        ValueError: images that do not fit together, or maps with negative values, which spread no weight.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, images, return_maps=False):
        ...         return images.mean((2, 3)), {"layer1": images.mean(1)}
        >>> images = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
        >>> attention_shift(Net(), images, images.flip(3))
        {'layer1': tensor([1.])}
    """
    if images.shape != adversarial.shape:
        raise ValueError(
            f"adversarial must be changed images, {tuple(images.shape)} as they are, got {tuple(adversarial.shape)}"
        )
    with frozen(model, gradients=False):
        before = maps_with_sum_one(model, pixels_of(images))
        after = maps_with_sum_one(model, pixels_of(adversarial))
    return {level: total_variation(before[level], after[level]) for level in before}
