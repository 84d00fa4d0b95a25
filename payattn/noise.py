r"""Wrong labels: what they do to the gradient, to the masks of an attention module and to what a network remembers.

With p the softmax of the logits and e_y the one-hot label, the gradient of the cross-entropy of a batch is a sum over
its images, and so splits into what the images with a true label ask for and what those with a wrong one ask for
(:func:`gradient_parts`). An attention module hands the gradient of its trunk on with the factor ``1 + M``
(:func:`filter_gains`). How far the network has given in is the share of wrong labels it answers (:func:`memorised`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from payattn.attention import promote
from payattn.data import ImageSet
from payattn.maps import device_of, frozen
from payattn.models import unit_range


def forward_loss(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    r"""Cross-entropy with forward correction, ``-log q_y`` with ``q_j = sum_k p_k Q_kj``, mean over the images.

    Its expectation under labels drawn from the rows of Q is smallest where p is the posterior of the true classes.

    Args:
        logits: (N, K).
        labels: the given ones, (N,).
        matrix: Q, (K, K), ``Q[k, j]`` the probability that an image of class k is given the label j.

    Returns:
        a scalar.

    Raises:
        ValueError: the matrix does not fit the logits.

    Source: Patrini et al., Making Deep Neural Networks Robust to Label Noise, CVPR 2017, theorem 2.

    Example:
        >>> matrix = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> forward_loss(torch.tensor([[100.0, 0.0]]), torch.tensor([1]), matrix)        # -log(1/4)
        tensor(1.3863)
    """
    if matrix.shape != (logits.shape[1], logits.shape[1]):
        raise ValueError(
            f"matrix must be ({logits.shape[1]}, {logits.shape[1]}) for these logits, got {tuple(matrix.shape)}"
        )
    mixed = promote(logits).softmax(1) @ matrix.to(promote(logits))
    return F.nll_loss(mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log(), labels)


def true_labels(data: ImageSet) -> Tensor:
    """The labels before label noise, (N,).

    Raises:
        ValueError: the set has none.

    Example:
        >>> from payattn.data import glyphs
        >>> data = glyphs(20, size=8, label_noise=0.5)
        >>> torch.equal(true_labels(data), glyphs(20, size=8).labels)
        True
    """
    if data.clean_labels is None:
        raise ValueError(
            f"{data.name!r} has no clean_labels, so nobody knows which of its labels are wrong; load it with "
            "label_noise, as in pa.load('glyphs', label_noise=0.5)"
        )
    return data.clean_labels


def memorised(model: nn.Module, data: ImageSet, batch_size: int = 500) -> dict[str, float]:
    """What a network answers on the images it was trained on, some of them with wrong labels.

    Args:
        model: maps images to logits; used in evaluation mode.
        data: a set with ``clean_labels``.
        batch_size: images at a time.

    Returns:
        ``clean``: share of the images with a true label where the answer is that label; ``wrong``: share of the
        images with a wrong label where the answer is that wrong label, so what is memorised; ``true``: share of
        these images where the answer is the true class all the same.

    Raises:
        ValueError: the set has no ``clean_labels``, or no image with a wrong label, or none with a true one.

    Example:
        >>> from payattn.data import glyphs
        >>> class First(nn.Module):
        ...     def forward(self, x): return torch.eye(10)[torch.zeros(len(x), dtype=torch.long)]
        >>> sorted(memorised(First(), glyphs(40, size=8, label_noise=0.5)))
        ['clean', 'true', 'wrong']
    """
    labels, clean, device = data.labels.cpu(), true_labels(data).cpu(), device_of(model)
    wrong = labels != clean
    if wrong.all() or not wrong.any():
        raise ValueError(f"{data.name!r} must have some true and some wrong labels, got {int(wrong.sum())} wrong ones")
    with frozen(model), torch.no_grad():
        answers = torch.cat([model(part.to(device)).argmax(1).cpu() for part in data.images.split(batch_size)])
    given, true = (answers == labels).double(), (answers == clean).double()
    return {
        "clean": given[~wrong].mean().item(),
        "wrong": given[wrong].mean().item(),
        "true": true[wrong].mean().item(),
    }


def gradient_parts(model: nn.Module, images: Tensor, given: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the mean cross-entropy of a batch with respect to all parameters, in two parts.

    The first part comes from the images whose given label is the true one, the second from the others; both are
    divided by the size of the whole batch, and their sum is the gradient. The model stays in the mode it is in: with
    batch statistics too, the loss is a sum over images, and the parts add up.

    Args:
        model: maps images to logits.
        images: (N, 3, H, W).
        given, true: labels, (N,).

    Returns:
        two vectors with one number per parameter.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> images, given = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
        >>> [part.shape for part in gradient_parts(model, images, given, torch.tensor([0, 1, 1, 0]))]
        [torch.Size([26]), torch.Size([26])]
    """
    device, parameters = device_of(model), [p for p in model.parameters() if p.requires_grad]
    losses = F.cross_entropy(promote(model(images.to(device))), given.to(device), reduction="none") / len(images)
    wrong = (given != true).to(device)
    parts = []
    for chosen in (~wrong, wrong):
        found = torch.autograd.grad((losses * chosen).sum(), parameters, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        parts.append(torch.cat([g.flatten() for g in flat]))
    return parts[0], parts[1]


def filter_gains(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, dict[str, Tensor]]:
    r"""By how much each attention module changes the length of the gradient on its way to the trunk, image by image.

    .. math:: D_n = \frac{\lVert (1 + M_n) \odot g_n \rVert}{\lVert g_n \rVert},
       \qquad g = \partial \mathcal L / \partial H

    D lies between 1 and 2 for masks in [0, 1]. A mask that does not look where the gradient is has
    :math:`D_n \approx \sqrt{\mathrm{mean}\,(1 + M_n)^2}`, which is given beside it as ``flat``. In a module with naive
    fusion the factor is M in place of 1 + M.

    Args:
        model: a network with attention modules (``model.levels``, ``model.masks``); used in evaluation mode, so that
            images do not touch each other.
        images: (N, 3, H, W).
        labels: those of the loss, (N,).

    Returns:
        level to ``gain`` (N,), ``flat`` (N,) and ``contrast`` (N,): the largest factor over the smallest. Empty for a
        network without attention modules.

    Example:
        >>> from payattn.models import create
        >>> net = create("attention-56", classes=3, width=0.125)
        >>> found = filter_gains(net, torch.rand(2, 3, 16, 16), torch.tensor([0, 2]))
        >>> sorted(found), found["stage1.attention1"]["gain"].shape
        (['stage1.attention1', 'stage2.attention1', 'stage3.attention1'], torch.Size([2]))
    """
    kept: dict[str, Tensor] = {}
    device, levels = device_of(model), tuple(getattr(model, "levels", ()))
    if not (levels and hasattr(model, "masks")):
        return {}

    def keep(level: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: kept.__setitem__(level, inputs[0])

    images, labels = unit_range(images.to(device)).detach().clone().requires_grad_(), labels.to(device)
    with frozen(model):
        hooks = [model.get_submodule(f"{level}.after").register_forward_pre_hook(keep(level)) for level in levels]
        try:
            loss = F.cross_entropy(promote(model(images)), labels, reduction="sum")  # the sum: each image its own
        finally:
            for hook in hooks:
                hook.remove()
        gradients = torch.autograd.grad(loss, [kept[level] for level in levels])
        with torch.no_grad():
            masks = model.masks(images)  # type: ignore[operator]
    naive = {level: model.get_submodule(level).fusion == "naive" for level in levels}
    factors = {level: (mask if naive[level] else 1 + mask).flatten(1) for level, mask in masks.items()}
    return {
        level: _gain(factors[level].cpu(), gradient.flatten(1).cpu())
        for level, gradient in zip(levels, gradients, strict=True)
    }


def _gain(factor: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    return {
        "gain": (factor * gradient).norm(dim=1) / gradient.norm(dim=1),
        "flat": factor.square().mean(1).sqrt(),
        "contrast": factor.amax(1) / factor.amin(1).clamp_min(1e-6),  # a naive mask may be closed
    }
