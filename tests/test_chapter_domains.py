"""What the chapter "New domains and fine detail" states as equations and no other file tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from payattn import localize, measures
from payattn.data import ImageSet, glyphs


def test_the_small_part_of_a_fine_glyph_is_its_mark() -> None:
    data = glyphs(200, variant="fine", seed=5)
    mark = localize.small_parts(data.masks)
    found, dot = mark.flatten(1).sum(1), torch.tensor([name.startswith("dot") for name in data.classes])[data.labels]
    assert (found > 0).float().mean() > 0.95, "here and there a dash touches the glyph"
    assert found[dot].max() < 10 < found[~dot & (found > 0)].float().mean()
    assert not (mark & ~data.masks).any()
    assert not localize.small_parts(mark.new_ones(1, 4, 4)).any()


class Pointer(nn.Module):
    """A network whose one map is one pixel: the middle of the mark, or that of the rest."""

    levels = ("layer13",)

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = nn.Parameter(maps.float())

    def forward(self, images: Tensor, return_maps: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(len(images), 10), {"layer13": self.maps[: len(images)]}


def test_the_measure_of_detail_tells_a_map_on_the_part_from_a_map_on_the_object() -> None:
    data = glyphs(60, variant="fine", seed=5)
    parts = localize.small_parts(data.masks)
    whole = parts.flatten(1).any(1)
    rest = (data.masks & ~localize.widen(parts, 1))[whole]
    on = {"glyphs-fine": (data, data)}
    there = measures.detail(Pointer(parts[whole]), on, {}, lambda name: nn.Identity())["glyphs-fine"]
    away = measures.detail(Pointer(rest), on, {}, lambda name: nn.Identity())["glyphs-fine"]
    assert there["layer13"] == pytest.approx({"part": 1, "object": 1, "weight": 1})
    assert away["layer13"] == pytest.approx({"part": 0, "object": 1, "weight": 0})
    assert there["centre"] == away["centre"]
    assert there["random"]["weight"] == pytest.approx(parts[whole].float().mean().item())
    assert there["random"]["part"] > there["random"]["weight"], "a tolerance of one pixel makes the part larger"


def test_the_measure_of_detail_needs_masks() -> None:
    data = glyphs(20, variant="fine")
    bare = ImageSet(data.images, data.labels, data.classes)
    with pytest.raises(ValueError, match="has no masks"):
        measures.detail(nn.Identity(), {"bare": (bare, bare)}, {}, lambda name: nn.Identity())
