"""Learn To Pay Attention (Jetley, Lord, Lee, Torr, ICLR 2018): the attention estimator.

One level of a CNN has local features ``l_i`` at the positions ``i = 1..n`` of its map, and one query ``g``,
the global descriptor of the image. The estimator works in three steps (paper, section 3):

    c_i = C(l_i, g)              a score for each position          ``dot_product_scores`` and its siblings
    a_i = exp c_i / sum_j exp c_j   weights that sum to one         ``attention_weights``
    g_a = sum_i a_i l_i          one descriptor for the level       ``attend``

The functions hold the mathematics; the modules below hold the parameters and call the functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

SCORES = ("dp", "pc", "additive", "scaled-dp", "uniform")
NORMS = ("softmax", "sigmoid-sum", "sigmoid-mean")
PROJECTIONS = ("query", "local")
COMBINATIONS = ("product", "mean")
INITS = ("paper", "default")


def promote(x: Tensor) -> Tensor:
    """At least float32: half precision goes up, float64 stays, so that gradient checks remain exact.

    Example:
        >>> promote(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def contract(equation: str, *factors: Tensor) -> Tensor:
    """``torch.einsum`` in at least float32, also under autocast, which would send it to half precision.

    Example:
        >>> contract("nmhw,nm->nhw", torch.ones(1, 4, 1, 2), torch.ones(1, 4))
        tensor([[[4., 4.]]])
    """
    kind = reduce(torch.promote_types, (factor.dtype for factor in factors), torch.float32)
    factors = tuple(factor.to(kind) for factor in factors)
    device = factors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return torch.einsum(equation, *factors)  # the meta device knows no autocast, and exported graphs stay plain
    with torch.autocast(device, enabled=False):
        return torch.einsum(equation, *factors)


def choose(what: str, value: str, valid: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``valid``; otherwise say which choice was probably meant.

    Raises:
        ValueError: names the value that came, the nearest valid one and all valid ones.

    Example:
        >>> choose("score", "pc", SCORES)
        'pc'
    """
    if value in valid:
        return value
    near = get_close_matches(str(value), valid, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} is {value!r}{hint} (valid: {', '.join(map(repr, valid))})")


def _check_pair(local: Tensor, query: Tensor) -> None:
    if local.ndim != 4:
        raise ValueError(f"local features must be (N, M, H, W), got {tuple(local.shape)}")
    if query.ndim != 2 or query.shape[1] != local.shape[1]:
        raise ValueError(
            f"query must be (N, {local.shape[1]}) to match local features {tuple(local.shape)}, got "
            f"{tuple(query.shape)}; project one of them first (SpatialAttention does it)"
        )
    if query.shape[0] not in (1, local.shape[0]):
        raise ValueError(
            f"query has {query.shape[0]} rows for {local.shape[0]} images; give one row per image, or one row for all"
        )


def _check_weight(local: Tensor, weight: Tensor) -> None:
    if weight.shape != (local.shape[1],):
        raise ValueError(f"weight u must have shape ({local.shape[1]},), got {tuple(weight.shape)}")


def dot_product_scores(local: Tensor, query: Tensor, scaled: bool = False) -> Tensor:
    r"""Compatibility by dot product, ``c_i = <l_i, g>`` (paper, section 3.1, "dp").

    Args:
        local: local features l, shape (N, M, H, W).
        query: one query g per image, shape (N, M), or (1, M) for all images.
        scaled: divide by ``sqrt(M)``. Not in the paper: it keeps the scores near unit size when the features
            are, so that the softmax does not saturate before it has learned.

    Returns:
        Scores c, shape (N, H, W), at least float32.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> local = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])      # l_1 = (1, 0), l_2 = (0, 1)
        >>> dot_product_scores(local, torch.tensor([[3.0, 5.0]]))
        tensor([[[3., 5.]]])
    """
    _check_pair(local, query)
    scores = contract("nmhw,nm->nhw", local, query.expand(local.shape[0], -1))
    return scores / math.sqrt(local.shape[1]) if scaled else scores


def parametrised_scores(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Parametrised compatibility, ``c_i = <u, l_i + g> (+ b)`` (paper, section 3.1, "pc").

    The score is linear, so it falls apart into ``<u, l_i> + <u, g> (+ b)``. Only the first term depends on the
    position: a softmax over positions cancels the others, and with them the query.

    Args:
        local: local features l, shape (N, M, H, W).
        query: one query g per image, shape (N, M), or (1, M) for all images.
        weight: the learned vector u, shape (M,).
        bias: the bias b of the authors' 1x1 convolution, a scalar tensor; None for the paper's equation.

    Returns:
        Scores c, shape (N, H, W), at least float32.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> local = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        >>> parametrised_scores(local, torch.tensor([[10.0, 0.0]]), weight=torch.tensor([2.0, 1.0]))
        tensor([[[22., 21.]]])
    """
    _check_pair(local, query)
    _check_weight(local, weight)
    of_local = contract("nmhw,m->nhw", local, weight)
    of_query = contract("nm,m->n", query, weight)
    scores = of_local + of_query[:, None, None]
    return scores if bias is None else scores + promote(bias)


def additive_scores(local: Tensor, query: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Additive compatibility with a nonlinearity, ``c_i = <u, tanh(l_i + g)> (+ b)``.

    Not in the paper. The tanh stands between the sum and ``u``, so the score no longer falls apart into a term
    of ``l_i`` and a term of ``g``, and the softmax cannot cancel the query.

    Args:
        local: local features l, shape (N, M, H, W).
        query: one query g per image, shape (N, M), or (1, M) for all images.
        weight: the learned vector u, shape (M,).
        bias: a scalar tensor or None.

    Returns:
        Scores c, shape (N, H, W), at least float32.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> local = torch.tensor([[[[0.0, 2.0]]]])
        >>> additive_scores(local, torch.tensor([[0.0]]), weight=torch.tensor([1.0])).round(decimals=4)
        tensor([[[0.0000, 0.9640]]])
    """
    _check_pair(local, query)
    _check_weight(local, weight)
    summed = promote(local) + promote(query)[:, :, None, None]
    scores = contract("nmhw,m->nhw", torch.tanh(summed), weight)
    return scores if bias is None else scores + promote(bias)


def attention_weights(scores: Tensor, norm: str = "softmax") -> Tensor:
    r"""Turn scores into weights, over the positions of one image and one level.

    ``softmax``: ``a_i = exp c_i / sum_j exp c_j`` (paper, section 3.1), a map that sums to one.
    ``sigmoid-sum``: ``a_i = sigmoid(c_i)``, the authors' sigmoid variant.
    ``sigmoid-mean``: ``a_i = sigmoid(c_i) / n``, as some re-implementations have it.
    In each case the descriptor is ``sum_i a_i l_i``.

    Args:
        scores: c, shape (N, H, W).
        norm: one of ``NORMS``.

    Returns:
        Weights a, shape (N, H, W), at least float32, non-negative.

    Raises:
        ValueError: if ``scores`` does not have three dimensions or ``norm`` is unknown.

    Example:
        >>> attention_weights(torch.tensor([[[math.log(3.0), 0.0]]]))
        tensor([[[0.7500, 0.2500]]])
    """
    if scores.ndim != 3:
        raise ValueError(f"scores must be (N, H, W), got {tuple(scores.shape)}")
    scores = promote(scores)
    if choose("norm", norm, NORMS) == "softmax":
        return scores.flatten(1).softmax(dim=1).view_as(scores)
    weights = torch.sigmoid(scores)
    return weights if norm == "sigmoid-sum" else weights / (scores.shape[1] * scores.shape[2])


def attend(local: Tensor, weights: Tensor) -> Tensor:
    r"""The attention-weighted descriptor, ``g_a = sum_i a_i l_i`` (paper, section 3.1).

    Args:
        local: local features l, shape (N, M, H, W).
        weights: a, shape (N, H, W).

    Returns:
        Descriptor, shape (N, M), at least float32.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> attend(torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[0.75, 0.25]]]))
        tensor([[2.5000]])
    """
    if local.ndim != 4 or weights.shape != (local.shape[0], *local.shape[2:]):
        raise ValueError(
            f"local features must be (N, M, H, W) and weights (N, H, W), got {tuple(local.shape)} and "
            f"{tuple(weights.shape)}"
        )
    return contract("nmhw,nhw->nm", local, weights)


def normalised_entropy(weights: Tensor) -> Tensor:
    r"""How evenly a map spreads its weight: ``-sum_i a_i log a_i / log n``.

    1 for uniform attention, 0 for one position. Not in the paper; it tells a map that attends from one that only
    looks sharp because a figure has scaled it.

    Args:
        weights: softmax maps a, shape (N, H, W), each non-negative with sum one.

    Returns:
        Shape (N,), from 0 to 1, at least float32.

    Raises:
        ValueError: if a map is negative somewhere, does not sum to one or has one position only.

    Example:
        >>> normalised_entropy(torch.tensor([[[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5, 0.0, 0.0]]]))
        tensor([1.0000, 0.5000])
    """
    flat = promote(weights).flatten(1)
    if weights.ndim != 3 or flat.shape[1] < 2:
        raise ValueError(f"weights must be (N, H, W) with two positions or more, got {tuple(weights.shape)}")
    if (flat < 0).any() or ((flat.sum(1) - 1).abs() > 1e-3).any():
        raise ValueError("weights must be non-negative and sum to one over the positions; only softmax maps do")
    return -torch.special.xlogy(flat, flat).sum(1) / math.log(flat.shape[1])


class Attended(NamedTuple):
    """What one level gives: descriptor g_a (N, M), map a (N, H, W) and the scores c (N, H, W) before the softmax.

    Example:
        >>> descriptor, weights, scores = SpatialAttention(8)(torch.rand(2, 8, 5, 7), torch.rand(2, 8))
        >>> descriptor.shape, weights.shape == scores.shape
        (torch.Size([2, 8]), True)
    """

    descriptor: Tensor
    map: Tensor
    scores: Tensor


class SpatialAttention(nn.Module):
    """The attention estimator of one level: scores, weights, descriptor (paper, section 3).

    Where local features and query differ in length, the query is projected down to the local length by
    BatchNorm, ReLU, Dropout and a linear map (the authors' code; ``project="query"``), or the local features are
    projected up by a 1x1 convolution and their projection is what is averaged (``project="local"``; there the
    query passes BatchNorm, ReLU and Dropout, as in the authors' up-projecting variant).

    With ``score="pc"`` and a softmax the query has no influence and gets no gradient (see
    ``parametrised_scores``); then ``bias`` and the projection of the query do not learn either.

    Args:
        local_channels: M, channels of the local features.
        query_channels: length of the query; None when it equals ``local_channels``.
        score: ``"pc"`` and ``"dp"`` of the paper, ``"scaled-dp"``, ``"additive"`` (ours), or ``"uniform"``, the
            control that weighs all positions alike.
        norm: one of ``NORMS``.
        project: which side is projected when the lengths differ.
        dropout: rate in the projection of the query.
        init: ``"paper"`` draws u from N(0, 2), as the authors' initialisation of a 1x1 convolution does, which
            makes the first maps almost one-hot; ``"default"`` draws from U(+-1/sqrt(M)) as PyTorch does, which
            makes them almost uniform.

    Attributes:
        out_channels: length of the descriptor.

    Raises:
        ValueError: for an unknown choice, with the nearest valid one.

    Example:
        >>> level = SpatialAttention(local_channels=8, query_channels=16, score="dp").eval()
        >>> out = level(torch.rand(2, 8, 5, 7), torch.rand(2, 16))
        >>> out.descriptor.shape, out.map.shape, out.map.sum(dim=(1, 2)).round(decimals=3).tolist()
        (torch.Size([2, 8]), torch.Size([2, 5, 7]), [1.0, 1.0])
    """

    def __init__(
        self,
        local_channels: int,
        query_channels: int | None = None,
        *,
        score: str = "pc",
        norm: str = "softmax",
        project: str = "query",
        dropout: float = 0.5,
        init: str = "paper",
    ) -> None:
        super().__init__()
        self.score = choose("score", score, SCORES)
        self.norm = choose("norm", norm, NORMS)
        choose("project", project, PROJECTIONS)
        choose("init", init, INITS)
        query_channels = query_channels or local_channels
        differ = query_channels != local_channels
        self.out_channels = query_channels if differ and project == "local" else local_channels
        self.project_local: nn.Module = nn.Identity()
        self.project_query: nn.Module = nn.Identity()
        if differ and score != "uniform":
            path: list[nn.Module] = [nn.BatchNorm1d(query_channels), nn.ReLU(), nn.Dropout(dropout)]
            if project == "query":
                path.append(nn.Linear(query_channels, local_channels))
            self.project_query = nn.Sequential(*path)
        if differ and project == "local":
            self.project_local = nn.Conv2d(local_channels, query_channels, kernel_size=1)
        if score in ("pc", "additive"):
            self.weight = nn.Parameter(torch.empty(self.out_channels))
            self.bias = nn.Parameter(torch.zeros(()))
            self.reset_parameters(init)

    def reset_parameters(self, init: str = "paper") -> None:
        """Draw u again; see ``init`` of the class."""
        if init == "paper":
            nn.init.normal_(self.weight, std=math.sqrt(2.0))
        else:
            bound = 1 / math.sqrt(self.weight.numel())
            nn.init.uniform_(self.weight, -bound, bound)

    def scores(self, local: Tensor, query: Tensor) -> Tensor:
        """Scores c, shape (N, H, W), of features and a query that already have one length."""
        if self.score == "pc":
            return parametrised_scores(local, query, self.weight, self.bias)
        if self.score == "additive":
            return additive_scores(local, query, self.weight, self.bias)
        if self.score == "uniform":
            return promote(local).new_zeros(local.shape[0], *local.shape[2:])
        return dot_product_scores(local, query, scaled=self.score == "scaled-dp")

    def forward(self, local: Tensor, query: Tensor) -> Attended:
        """Attend to ``local`` (N, M, H, W) with ``query`` (N, M') or (1, M')."""
        local = self.project_local(local)
        scores = self.scores(local, self.project_query(query))
        weights = attention_weights(scores, self.norm)
        return Attended(attend(local, weights), weights, scores)

    def extra_repr(self) -> str:
        return f"score={self.score!r}, norm={self.norm!r}, out_channels={self.out_channels}"


def independent_logits(logits: Sequence[Tensor], combine: str = "product") -> Tensor:
    r"""One prediction from one classifier per level ("indep", paper, section 3.2).

    ``mean``: the paper averages the class probabilities, ``p = (1/S) sum_s p^s``.
    ``product``: the authors' code adds the per-level log-probabilities and normalises again,
    ``p ∝ prod_s p^s``. The published numbers come from the code, so this is the default.

    Args:
        logits: one (N, C) tensor per level.
        combine: ``"product"`` or ``"mean"``.

    Returns:
        Logits, shape (N, C), whose softmax is the combined p.

    Raises:
        ValueError: for no level, or an unknown ``combine``.

    Example:
        >>> one, two = torch.tensor([[0.7, 0.29, 0.01]]).log(), torch.tensor([[0.05, 0.35, 0.6]]).log()
        >>> independent_logits([one, two], "mean").softmax(1).argmax().item()
        0
        >>> independent_logits([one, two], "product").softmax(1).argmax().item()
        1
    """
    if not logits:
        raise ValueError("independent_logits needs the logits of at least one level, got none")
    choose("combine", combine, COMBINATIONS)
    log_probabilities = torch.stack([promote(level).log_softmax(dim=1) for level in logits])
    if combine == "product":
        return log_probabilities.sum(dim=0)
    return log_probabilities.logsumexp(dim=0) - math.log(len(logits))


def _descriptor_path(channels: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(channels), nn.ReLU(), nn.Dropout(dropout))


class ConcatHead(nn.Module):
    """Classify the concatenated descriptors of all levels, ``W [g~^1, ..., g~^S] + b`` ("concat", section 3.2).

    Each descriptor first passes BatchNorm, ReLU and Dropout, as in the authors' code.

    Args:
        channels: length of each level's descriptor.
        classes: C.
        dropout: rate after each ReLU.

    Example:
        >>> ConcatHead([4, 8], classes=3)([torch.rand(2, 4), torch.rand(2, 8)]).shape
        torch.Size([2, 3])
    """

    def __init__(self, channels: Sequence[int], classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.paths = nn.ModuleList(_descriptor_path(m, dropout) for m in channels)
        self.classifier = nn.Linear(sum(channels), classes)

    def features(self, descriptors: Sequence[Tensor]) -> Tensor:
        """What the classifier sees, shape (N, sum of channels): used as features of other data sets."""
        kind = self.classifier.weight.dtype  # descriptors are float32 even in a model.half()
        return torch.cat([path(g.to(kind)) for path, g in zip(self.paths, descriptors, strict=True)], dim=1)

    def forward(self, descriptors: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.features(descriptors))


class IndepHead(nn.Module):
    """One classifier per level, their predictions combined ("indep", section 3.2; see ``independent_logits``).

    Args:
        channels: length of each level's descriptor.
        classes: C.
        dropout: rate after each ReLU.
        combine: ``"product"`` (the authors' code) or ``"mean"`` (the paper).

    Example:
        >>> IndepHead([4, 8], classes=3, combine="mean")([torch.rand(2, 4), torch.rand(2, 8)]).shape
        torch.Size([2, 3])
    """

    def __init__(self, channels: Sequence[int], classes: int, dropout: float = 0.5, combine: str = "product") -> None:
        super().__init__()
        self.combine = choose("combine", combine, COMBINATIONS)
        self.paths = nn.ModuleList(_descriptor_path(m, dropout) for m in channels)
        self.classifiers = nn.ModuleList(nn.Linear(m, classes) for m in channels)

    def features(self, descriptors: Sequence[Tensor]) -> Tensor:
        """What the classifiers see, side by side, shape (N, sum of channels)."""
        return torch.cat(self._passed(descriptors), dim=1)

    def _passed(self, descriptors: Sequence[Tensor]) -> list[Tensor]:
        kind = next(self.classifiers.parameters()).dtype  # descriptors are float32 even in a model.half()
        return [path(g.to(kind)) for path, g in zip(self.paths, descriptors, strict=True)]

    def forward(self, descriptors: Sequence[Tensor]) -> Tensor:
        levels = zip(self.classifiers, self._passed(descriptors), strict=True)
        return independent_logits([classify(g) for classify, g in levels], self.combine)
