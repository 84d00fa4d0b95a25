"""The VGG networks of Learn To Pay Attention: the baseline, global average pooling, progressive and trained attention.

The trunk (paper, section 4; the layer table is the authors' code) has the 3x3 convolutions 1 to 15. A *level* is
the output of layer 7, 10 or 13, and the query g comes from layers 14 and 15 and the linear layer FC-1.

``layout="cifar"`` is the network for 32 px (CIFAR, SVHN), ``"cub"`` the one for 80 px: there the pools bring 80 px
to maps of the same sizes. Both take images of any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from payattn.attention import (
    COMBINATIONS,
    INITS,
    NORMS,
    PROJECTIONS,
    SCORES,
    Attended,
    ConcatHead,
    IndepHead,
    SpatialAttention,
    choose,
)
from payattn.models.base import (
    HEAD_DROPOUT,
    Attentive,
    Classifier,
    ConvBlock,
    Maps,
    class_activation,
    global_head,
    map_of_class,
    pool,
)
from payattn.models.colour import Numbers

# Layer number: (index into the four widths, dropout after its ReLU). Widths 64, 128, 256, 512 at width 1.
LAYERS = {
    1: (0, 0.3), 2: (0, 0.0),
    3: (1, 0.4), 4: (1, 0.0),
    5: (2, 0.4), 6: (2, 0.4), 7: (2, 0.0),
    8: (3, 0.4), 9: (3, 0.4), 10: (3, 0.0),
    11: (3, 0.4), 12: (3, 0.4), 13: (3, 0.0),
    14: (3, 0.4), 15: (3, 0.4),
}  # fmt: skip
WIDTHS = (64, 128, 256, 512)
LEVELS = {1: ("layer13",), 2: ("layer10", "layer13"), 3: ("layer7", "layer10", "layer13")}
LAYOUTS = ("cifar", "cub")

# Layer number: side of the max-pool behind it. "plain" is the baseline VGG, "deep" what all others share.
POOLS = {
    ("plain", "cifar"): dict.fromkeys((2, 4, 7, 10, 13), 2),
    ("plain", "cub"): {2: 2, 4: 2, 7: 2, 10: 2, 12: 2, 13: 3},
    ("deep", "cifar"): dict.fromkeys((7, 10, 13, 14, 15), 2),
    ("deep", "cub"): {7: 5, 10: 2, 13: 2, 14: 2, 15: 2},
}


class Trunk(nn.Module):
    """The 3x3 convolutions of the VGG networks, named ``layer1`` to ``layer15``.

    Args:
        last: number of the last layer (13 or 15).
        pool_after: numbers of the layers that a 2x2 max-pool follows, or a dict from number to the pool's side.
        width: factor on the widths 64, 128, 256, 512.
        dropout: factor on the published dropout rates.

    Example:
        >>> trunk = Trunk(13, pool_after=(7, 10), width=0.125)
        >>> trunk.run(torch.rand(2, 3, 32, 32), first=1, last=13).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self, last: int, pool_after: Sequence[int] | Mapping[int, int], width: float = 1.0, dropout: float = 1.0
    ) -> None:
        super().__init__()
        self.pool_after = dict(pool_after) if isinstance(pool_after, Mapping) else dict.fromkeys(pool_after, 2)
        self.channels = {n: max(1, round(WIDTHS[stage] * width)) for n, (stage, _) in LAYERS.items() if n <= last}
        previous = 3
        for number, channels in self.channels.items():
            self.add_module(f"layer{number}", ConvBlock(previous, channels, LAYERS[number][1] * dropout))
            previous = channels

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        """Apply layers ``first`` to ``last`` and their pools, but not the pool after ``last``."""
        for number in range(first, last + 1):
            x = self.get_submodule(f"layer{number}")(x)
            if number in self.pool_after and number < last:
                x = pool(x, self.pool_after[number])
        return x


class VGG(Classifier):
    """The baseline: thirteen convolutions with a pool after 2, 4, 7, 10 and 13, and two linear layers (section 4).

    Args:
        classes, width, dropout, init, layout, mean, std, colour: see ``VGGAttention``. With ``layout="cub"`` the last
            two pools are one of 2 after layer 12 and one of 3 after layer 13.

    Example:
        >>> sum(p.numel() for p in VGG(classes=10).parameters())
        14991946
    """

    def __init__(
        self, classes: int = 10, *, width: float = 1.0, dropout: float = 1.0, init: str = "paper",
        layout: str = "cifar", mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        self.trunk = Trunk(13, POOLS["plain", choose("layout", layout, LAYOUTS)], width, dropout)
        channels = self.trunk.channels[13]
        self.fc1 = nn.Sequential(nn.Dropout(HEAD_DROPOUT * dropout), nn.Linear(channels, channels))
        self.head = global_head(channels, classes, dropout)
        self.initialise(init)

    def _descriptor(self, images: Tensor) -> Tensor:
        local = self.trunk.run(self.normalize(images), 1, 13)
        return self.fc1(pool(local, self.trunk.pool_after[13]).amax(dim=(2, 3)))

    def features(self, images: Tensor) -> Tensor:
        """What the last linear layer sees, (N, 512 at width 1): FC-1 after BatchNorm and ReLU."""
        return self.head[:-1](self._descriptor(images))

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also an empty dict: this network has no map."""
        logits = self.head(self._descriptor(images))
        return (logits, {}) if return_maps else logits


class VGGGAP(Classifier):
    """Global average pooling on layer 13 of the attention networks' trunk, then one linear layer (section 4).

    Its map is the class activation map of the predicted class, ``sum_k w_ck A_k``: the logit of class c is its
    spatial mean plus the bias. It is made after the decision; nothing in the network uses it. ``class_map`` gives
    that of any class.

    Args:
        classes, width, dropout, init, layout, mean, std, colour: see ``VGGAttention``.

    Example:
        >>> sum(p.numel() for p in VGGGAP(classes=10).parameters())
        14728266
        >>> net = VGGGAP(classes=10, width=0.05).eval()
        >>> net.class_map(torch.rand(2, 3, 32, 32), torch.tensor([1, 7])).shape
        torch.Size([2, 8, 8])
    """

    levels = ("layer13",)

    def __init__(
        self, classes: int = 10, *, width: float = 1.0, dropout: float = 1.0, init: str = "paper",
        layout: str = "cifar", mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        pools = POOLS["deep", choose("layout", layout, LAYOUTS)]
        self.trunk = Trunk(13, {number: pools[number] for number in (7, 10)}, width, dropout)
        self.head = nn.Linear(self.trunk.channels[13], classes)
        self.initialise(init)

    def _local(self, images: Tensor) -> Tensor:
        return self.trunk.run(self.normalize(images), 1, 13)

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees, (N, 512 at width 1): the spatial mean of layer 13."""
        return self._local(images).mean(dim=(2, 3))

    def class_map(self, images: Tensor, target: Tensor | None = None) -> Tensor:
        """The class activation map (N, h, w) of class ``target`` (N,); None takes the predicted class."""
        return map_of_class(self._local(images), self.head, target)

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also ``{"layer13": CAM of the predicted class (N, H, W)}``."""
        local = self._local(images)
        logits = self.head(local.mean(dim=(2, 3)))
        if not return_maps:
            return logits
        return logits, {"layer13": class_activation(local, self.head.weight, logits.argmax(dim=1))}


def shrink(x: Tensor) -> Tensor:
    """Max-pool by a factor of 2.5: 80 becomes 32, as the first level of the network for 80 px has it.

    The authors' file holds a pool of fractional size that cannot give 32; this is its intent. On multiples of 5 it
    equals nearest-neighbour enlargement by 2 followed by a max-pool of 5.

    Example:
        >>> shrink(torch.rand(1, 4, 80, 12)).shape
        torch.Size([1, 4, 32, 5])
    """
    return torch.nn.functional.adaptive_max_pool2d(x, [-(-2 * side // 5) for side in x.shape[2:]])


def _at_level(x: Tensor, size: int) -> tuple[Tensor, int]:
    """Features where a level taps them, and the side of the pool that is left behind it.

    A pool of 5 (layer 7 at 80 px) is taken in two steps, 2.5 and 2, and the level lies between them.
    """
    return (shrink(x), 2) if size == 5 else (x, size)


class QueryBranch(nn.Module):
    """A global branch of its own for one level: what layers 14, 15 and FC-1 do, from the features of that level.

    Pool, convolution, pool, convolution, pool, linear layer; at the paper's image sizes the last map is 1x1, and the
    maximum over it makes any size work.

    Args:
        channels: M, of the level's features.
        length: M', of the query.
        first_pool: side of the first max-pool, which brings the level's map to 4x4.
        dropout: factor on the published rates.

    Example:
        >>> QueryBranch(channels=8, length=16, first_pool=4)(torch.rand(2, 8, 16, 16)).shape
        torch.Size([2, 16])
    """

    def __init__(self, channels: int, length: int, first_pool: int, dropout: float = 1.0) -> None:
        super().__init__()
        self.first_pool = first_pool
        self.layer14 = ConvBlock(channels, length, LAYERS[14][1] * dropout)
        self.layer15 = ConvBlock(length, length, LAYERS[15][1] * dropout)
        self.fc1 = nn.Sequential(nn.Dropout(HEAD_DROPOUT * dropout), nn.Linear(length, length))

    def forward(self, x: Tensor) -> Tensor:
        """The query (N, M') from features (N, M, H, W)."""
        x = pool(self.layer14(pool(x, self.first_pool)))
        return self.fc1(pool(self.layer15(x)).amax(dim=(2, 3)))


FIRST_POOLS = {"layer7": 8, "layer10": 4}  # from maps of side 32 and 16 to 4


class VGGAttention(Attentive):
    """VGG-att1, -att2, -att3: only attention-weighted descriptors reach the classifier (sections 3 and 4).

    Args:
        classes: C.
        levels: 1 (layer 13), 2 (10 and 13) or 3 (7, 10 and 13); 0 is the no-attention control: the same trunk,
            its query g classified directly.
        score, norm, project: see ``payattn.attention.SpatialAttention``.
        head: ``"concat"`` or ``"indep"``; with one level both are one linear classifier.
        combine: how ``"indep"`` joins its predictions, see ``payattn.attention.independent_logits``.
        tap: ``"pre"``: local features before the max-pool that follows the layer (the authors' code);
            ``"post"``: after it.
        gradient_merge: ``"sum"`` (autograd) or ``"mean"``: the authors' hand-written backward averages the
            gradients of the branches that meet at a level, and of the units that meet at g.
        queries: ``"shared"``: one query g for all levels; ``"separate"``: each level but the last has a global
            branch of its own (``QueryBranch``; the authors' "2global" and "3global" as we read them).
        width: factor on all widths, 1 is the paper's network.
        dropout: factor on all published rates, 0 switches dropout off.
        init: ``"paper"`` or ``"default"`` (PyTorch's).
        score_init: of u alone, see ``SpatialAttention``; None takes ``init``. The paper's u makes the first maps
            almost one-hot, which a short schedule does not outgrow.
        layout: ``"cifar"``: pools for 32 px; ``"cub"``: for 80 px, where a pool of 5 follows layer 7, and level
            ``layer7`` lies after a reduction by 2.5. Both take any size.
        mean, std: of the first layer, see ``colour_statistics``.
        colour: ``"rgb"``, or ``"yuv-lcn"``: the authors' YUV with local contrast normalisation.

    Raises:
        ValueError: for an unknown choice, with the nearest valid one.

    Example:
        >>> net = VGGAttention(classes=10, levels=2, score="dp", width=0.125).eval()
        >>> logits, maps = net(torch.rand(2, 3, 32, 32), return_maps=True)
        >>> logits.shape, {name: tuple(a.shape) for name, a in maps.items()}
        (torch.Size([2, 10]), {'layer10': (2, 16, 16), 'layer13': (2, 8, 8)})
    """

    def __init__(
        self, classes: int = 10, *, levels: int = 2, score: str = "pc", head: str = "concat", norm: str = "softmax",
        project: str = "query", tap: str = "pre", combine: str = "product", gradient_merge: str = "sum",
        width: float = 1.0, dropout: float = 1.0, init: str = "paper", score_init: str | None = None,
        queries: str = "shared", layout: str = "cifar", mean: Numbers | None = None, std: Numbers | None = None,
        colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        if levels not in (0, *LEVELS):
            raise ValueError(f"levels must be 0 (the control), 1, 2 or 3, got {levels!r}")
        for what, value, valid in (
            ("score", score, SCORES), ("norm", norm, NORMS), ("project", project, PROJECTIONS),
            ("head", head, ("concat", "indep")), ("combine", combine, COMBINATIONS),
            ("init", init, INITS), ("score_init", score_init or init, INITS),
            ("queries", queries, ("shared", "separate")), ("layout", layout, LAYOUTS),
        ):  # fmt: skip
            choose(what, value, valid)  # also where this network has no use for it: a slip must not pass in silence
        self.tap = choose("tap", tap, ("pre", "post"))
        self.gradient_merge = choose("gradient_merge", gradient_merge, ("sum", "mean"))
        if queries == "separate" and gradient_merge == "mean":
            raise ValueError("gradient_merge='mean' is a rule for one shared query; with queries='separate' use 'sum'")
        self.levels = LEVELS.get(levels, ())
        self.trunk = Trunk(15, POOLS["deep", layout], width, dropout)
        self.query_length = length = self.trunk.channels[15]
        rate = HEAD_DROPOUT * dropout
        self.fc1 = nn.Sequential(nn.Dropout(rate), nn.Linear(length, length))
        if queries == "separate":
            self.branches = nn.ModuleDict({
                level: QueryBranch(
                    self.trunk.channels[_number(level)], length, FIRST_POOLS[level] // (2 if tap == "post" else 1),
                    dropout,
                )
                for level in self.levels[:-1]
            })  # fmt: skip
        self.attention = nn.ModuleDict({
            level: SpatialAttention(
                self.trunk.channels[_number(level)], length, score=score, norm=norm, project=project, dropout=rate,
                init=score_init or init,
            )
            for level in self.levels
        })  # fmt: skip
        channels = [int(unit.out_channels) for unit in self.attention.values()]  # type: ignore[arg-type]
        if not self.levels:
            self.head = global_head(length, classes, dropout)
        elif head == "concat" or levels == 1:
            self.head = ConcatHead(channels, classes, rate)
        else:
            self.head = IndepHead(channels, classes, rate, combine)
        self.initialise(init)

    def local_features(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Local features l of each level, (N, M, H, W) by layer name, and the input of layer 14."""
        x, start, local = self.normalize(images), 1, {}
        for number in (7, 10, 13):
            x, size = self.trunk.run(x, start, number), self.trunk.pool_after[number]
            name, start = f"layer{number}", number + 1
            if name in self.levels:
                x, size = _at_level(x, size)
                x = self._merged(x, 0.5)
            pooled = pool(x, size)
            if name in self.levels:
                local[name] = x if self.tap == "pre" else pooled
            x = pooled
        return local, x

    def _query(self, x: Tensor) -> Tensor:
        x = pool(self.trunk.run(x, 14, 15))
        g = self.fc1(x.amax(dim=(2, 3)))  # 1x1 already for 32 px; the maximum makes any size work
        return self._merged(g, 1 / max(1, len(self.levels)))

    def _queries(self, local: Maps, x: Tensor) -> Maps:
        if not hasattr(self, "branches"):
            return super()._queries(local, x)
        own = {name: branch(local[name]) for name, branch in self.branches.items()}
        return own | {self.levels[-1]: self._query(x)}


def _number(level: str) -> int:
    return int(level.removeprefix("layer"))


class VGGPAN(Classifier):
    r"""VGG-PAN: progressive attention, a mask on one layer before attention on the last (Seo et al. 2016; section 4).

    At layer 10 each feature is multiplied by its own weight, ``m_i = sigmoid(<u, l_i + g_1> + b)``, and the masked
    map, not a sum over it, goes on to layers 11 to 13. There pc attention with a softmax makes the one descriptor
    that is classified. Each of the two units has a global branch and a query of its own. The sigmoid does not cancel
    what the query adds to all scores, so the first branch learns; the second cannot (see ``parametrised_scores``).

    Args:
        mask: ``"sigmoid"``, or ``"softmax"``: the authors' exploratory variants.
        level: the masked layer, ``"layer10"`` ("higherlevel") or ``"layer7"`` ("lowerlevel"); for layer 7 the query
            is projected down, as in ``VGGAttention``, and the branch begins with a pool of 8.
        classes, width, dropout, init, score_init, layout, mean, std, colour: see ``VGGAttention``.

    Example:
        >>> net = VGGPAN(classes=10, width=0.125).eval()
        >>> logits, maps = net(torch.rand(2, 3, 32, 32), return_maps=True)
        >>> logits.shape, {name: tuple(a.shape) for name, a in maps.items()}
        (torch.Size([2, 10]), {'layer10': (2, 16, 16), 'layer13': (2, 8, 8)})
    """

    def __init__(
        self, classes: int = 10, *, mask: str = "sigmoid", level: str = "layer10", width: float = 1.0,
        dropout: float = 1.0, init: str = "paper", score_init: str | None = None, layout: str = "cifar",
        mean: Numbers | None = None, std: Numbers | None = None, colour: str = "rgb",
    ) -> None:  # fmt: skip
        super().__init__(classes, width, dropout, mean, std, colour)
        choose("score_init", score_init or init, INITS)
        norm = "softmax" if choose("mask", mask, ("sigmoid", "softmax")) == "softmax" else "sigmoid-sum"
        self.masked = choose("level", level, tuple(FIRST_POOLS))
        self.levels = (level, "layer13")
        self.trunk = Trunk(15, POOLS["deep", choose("layout", layout, LAYOUTS)], width, dropout)
        channels, length = self.trunk.channels[_number(level)], self.trunk.channels[15]
        rate = HEAD_DROPOUT * dropout
        self.fc1 = nn.Sequential(nn.Dropout(rate), nn.Linear(length, length))
        self.branch = QueryBranch(channels, length, FIRST_POOLS[level], dropout)
        self.attention = nn.ModuleDict({
            level: SpatialAttention(channels, length, norm=norm, dropout=rate, init=score_init or init),
            "layer13": SpatialAttention(length, dropout=rate, init=score_init or init),
        })  # fmt: skip
        self.head = ConcatHead([length], classes, rate)
        self.initialise(init)

    def attend(self, images: Tensor) -> dict[str, Attended]:
        """Descriptor, map and scores of both units, by layer name; the map of the first is its mask m."""
        number = _number(self.masked)
        x = self.trunk.run(self.normalize(images), 1, number)
        x, size = _at_level(x, self.trunk.pool_after[number])
        first: Attended = self.attention[self.masked](x, self.branch(x))
        x = pool(x * first.map[:, None].to(x.dtype), size)
        local = self.trunk.run(x, number + 1, 13)
        last = pool(self.trunk.run(pool(local, self.trunk.pool_after[13]), 14, 15))
        return {self.masked: first, "layer13": self.attention["layer13"](local, self.fc1(last.amax(dim=(2, 3))))}

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees, (N, 512 at width 1): the descriptor of layer 13 after BatchNorm and ReLU."""
        return self.head.features([self.attend(images)["layer13"].descriptor])

    def forward(self, images: Tensor, return_maps: bool = False) -> Tensor | tuple[Tensor, Maps]:
        """Logits (N, C); with ``return_maps`` also the mask of layer 10, in (0, 1), and the map of layer 13."""
        attended = self.attend(images)
        logits = self.head([attended["layer13"].descriptor])
        return (logits, {name: a.map for name, a in attended.items()}) if return_maps else logits
