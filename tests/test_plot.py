"""Figures: what they show, that no text is cut off, and what they refuse."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import matplotlib
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from payattn import plot

matplotlib.use("agg")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def softmax_maps(n: int, height: int, width: int, sharpness: float = 1.0) -> Tensor:
    return (sharpness * noise(n, height * width)).softmax(1).reshape(n, height, width)


IMAGES = noise(8, 3, 16, 16)
MAPS = {"layer10": softmax_maps(8, 8, 8), "layer13": softmax_maps(8, 4, 4, 3.0)}
RECORDS = [{"epoch": e, "test_accuracy": 1 - 0.5**e, "loss": 0.5**e} for e in range(1, 6)]
SEEDS = [[{**record, "loss": record["loss"] + s / 10} for record in RECORDS] for s in range(3)]


class History:
    """What the plots read of a training history."""

    def __init__(self, epochs: list[dict[str, float]]) -> None:
        self.epochs = epochs


def every_figure() -> dict[str, plot.Figure]:
    x = torch.linspace(0.1, 3, 30)
    names = ["vgg-att2-concat-scaled-dp", "vgg-att2-concat-additive", "vgg-att-control", "vgg-gap"]
    titles = ["A", "H", "box", "star", "X", "Y", "Z", "U"]
    masks = torch.zeros(8, 16, 16, dtype=torch.bool)
    masks[:, 4:10, 0:7] = True
    return {
        "scatter": plot.scatter({name: noise(5, 2, seed=i) for i, name in enumerate(names)}, "at home", "abroad",
                                lines={"the same": [[0.0, 0.0], [1.0, 1.0]]}),
        "overlay": plot.overlay(IMAGES, MAPS, masks=masks, columns=titles),
        "overlay of nearly uniform maps": plot.overlay(IMAGES, softmax_maps(8, 16, 16, 1e-2), scale="shared"),
        "overlay of one level": plot.overlay(IMAGES, MAPS["layer13"], scale="uniform"),
        "overlay of one": plot.overlay(IMAGES[0], MAPS["layer13"][0], scale="uniform"),
        "overlay, rectangular": plot.overlay(noise(2, 3, 11, 40), {"a": noise(2, 3, 7)}, scale=(0, 1)),
        "overlay, tall": plot.overlay(noise(8, 3, 40, 11), {"a": noise(8, 7, 3), "b": noise(8, 2, 1)}, scale="shared"),
        "grid": plot.grid(IMAGES, titles, masks=masks),
        "grid of one": plot.grid(IMAGES[0], ["A"]),
        "curves": plot.curves(dict.fromkeys(names, SEEDS), "loss"),
        "bars": plot.bars({name: [0.9, 0.91, 0.8] for name in names}, reference={"chance": 0.1}),
        "cells": plot.cells({"scores": noise(3, 4), "weights": softmax_maps(1, 3, 4)[0]}),
        "many cells": plot.cells(noise(5, 2, 2), [f"step {k}" for k in range(5)]),
        "lines": plot.lines(x, {"a": x, "b": 1 / x}, "temperature", "entropy", logx=True, logy=True),
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, plot.Figure]:
    return every_figure()


def texts(fig: figure.Figure) -> list[str]:
    return [t.get_text() for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip("\u200b")]


# ------------------------------------------------------------------------------------------- what all figures hold


def test_nothing_is_cut_off_and_no_text_is_smaller_than_nine_points(figures: dict[str, plot.Figure]) -> None:
    for name, fig in figures.items():
        drawn, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
        assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) >= -0.01, (name, drawn)
        small = [text for text in fig.findobj(Text) if text.get_text() and text.get_fontsize() < 9]
        assert not small, (name, small)


def test_no_figure_is_wider_than_seven_inches(figures: dict[str, plot.Figure]) -> None:
    for name, fig in figures.items():
        assert fig.get_figwidth() <= 7, name


def test_the_ranges_below_neighbouring_maps_do_not_touch(figures: dict[str, plot.Figure]) -> None:
    for name, fig in figures.items():
        below = [axes.xaxis.label for axes in fig.axes if axes.images and axes.get_xlabel()]
        boxes = [label.get_window_extent() for label in below]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[i + 1 :]), (name, below[i])


def test_a_figure_is_a_png_of_its_size_and_the_same_bytes_again(figures: dict[str, plot.Figure]) -> None:
    again = {
        "grid of one": plot.grid(IMAGES[0], ["A"]),
        "overlay of one": plot.overlay(IMAGES[0], MAPS["layer13"][0], scale="uniform"),
    }
    for name in again:
        picture = Image.open(io.BytesIO(figures[name].png(dpi=100)))
        assert picture.size == pytest.approx(100 * figures[name].get_size_inches(), abs=1), name
        assert figures[name].png() == again[name].png(), name


def test_a_palette_or_fewer_bits_hardly_move_a_colour(figures: dict[str, plot.Figure]) -> None:
    for name, bits in (("overlay", 6), ("overlay", 5), ("curves", 5), ("cells", 5)):
        buffer = io.BytesIO()
        figure.Figure.savefig(figures[name], buffer, format="png", dpi=110, facecolor="white")
        true, small = pixels(buffer.getvalue()), pixels(figures[name].png(bits=bits))
        assert (small - true).abs().quantile(0.999) <= 8, (name, bits)


def pixels(png: bytes) -> Tensor:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float()


def test_a_figure_shows_itself_in_a_notebook_without_pyplot() -> None:
    code = (
        "import sys, torch; from payattn import plot; from IPython.core.formatters import DisplayFormatter\n"
        "data, _ = DisplayFormatter().format(plot.cells([1.0, 2.0]))\n"
        "print('matplotlib.pyplot' in sys.modules, data['image/png'][:4])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == r"False b'\x89PNG'", run.stderr


def test_pyplot_does_not_know_the_figures() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot.grid(IMAGES[:2])
    assert pyplot.get_fignums() == before


def test_the_readers_own_settings_neither_change_the_figures_nor_are_changed() -> None:
    with matplotlib.rc_context({"font.size": 4, "figure.facecolor": "black", "axes.labelsize": 3}):
        fig = plot.curves({"a": RECORDS})
        assert matplotlib.rcParams["font.size"] == 4
    assert fig.png() == plot.curves({"a": RECORDS}).png()


# --------------------------------------------------------------------------------------------------------- overlay


def test_the_range_of_each_map_is_written_under_it() -> None:
    maps = torch.tensor([[[0.001, 0.021]], [[0.25, 0.75]], [[0.5, 0.5]], [[0.0, 0.0]]])
    fig = plot.overlay(IMAGES[:4], maps)
    assert [axes.get_xlabel() for axes in fig.axes if axes.get_xlabel()] == [
        "0.001\u20130.021",
        "0.25\u20130.75",
        "all 0.5",
        "all 0",
    ]
    assert "each map on its own scale" in texts(fig)


def test_two_ends_of_a_narrow_range_are_told_apart() -> None:
    fig = plot.overlay(IMAGES[:1], torch.tensor([[[0.003881, 0.003912]]]))
    low, high = fig.axes[1].get_xlabel().split("\u2013")
    assert float(low) < float(high)
    assert float(high) - float(low) == pytest.approx(0.000031, rel=0.2)


@settings(deadline=None)
@given(
    low=st.floats(-1e3, 1e3, allow_subnormal=False),
    gap=st.floats(1e-6, 1e3, allow_subnormal=False),
)
@example(low=2.5, gap=8.0)
def test_the_written_range_is_right_to_a_twentieth_of_its_width(low: float, gap: float) -> None:
    first, last = plot._span(low, low + gap)
    if gap > 1e-4 * max(abs(low), abs(low + gap)):
        assert abs(float(first) - low) <= 0.06 * gap
        assert abs(float(last) - low - gap) <= 0.06 * gap


def limits(fig: figure.Figure) -> list[tuple[float, float]]:
    """Return the colour limits of every map: each panel's second picture, on top of the grey image."""
    return [axes.images[1].get_clim() for axes in fig.axes if len(axes.images) > 1]


def test_each_map_has_its_own_limits_and_shared_maps_have_one() -> None:
    maps = {"a": torch.tensor([[[0.1, 0.2]], [[0.3, 0.5]]])}
    images = IMAGES[:2]
    assert limits(plot.overlay(images, maps)) == [pytest.approx((0.1, 0.2)), pytest.approx((0.3, 0.5))]
    assert limits(plot.overlay(images, maps, scale="shared")) == [pytest.approx((0.0, 0.5))] * 2
    assert limits(plot.overlay(images, maps, scale=(-1, 2))) == [(-1, 2)] * 2


def test_in_units_of_uniform_attention_levels_of_any_size_agree() -> None:
    maps = {"fine": torch.full((1, 16, 16), 1 / 256), "coarse": torch.full((1, 4, 4), 1 / 16)}
    fig = plot.overlay(IMAGES[:1], maps, scale="uniform")
    assert [axes.get_xlabel() for axes in fig.axes if axes.get_xlabel()] == ["all 1", "all 1"]
    assert "times uniform, 1/n" in texts(fig)
    assert limits(fig) == [(0.0, 1.0)] * 2


def test_maps_are_enlarged_bilinearly_or_shown_in_cells() -> None:
    maps = torch.tensor([[[0.0, 1.0]]])
    image = torch.zeros(1, 3, 2, 4)
    smooth = plot.overlay(image, maps).axes[1].images[1].get_array()
    cells = plot.overlay(image, maps, upsample="nearest").axes[1].images[1].get_array()
    assert smooth.tolist() == [[0.0, 0.25, 0.75, 1.0]] * 2
    assert cells.tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2


def test_without_a_backdrop_the_colours_are_those_of_the_map_alone() -> None:
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = torch.tensor([[[0.0, 1.0], [0.25, 0.5]]])
    with_image, alone = (plot.overlay(images, maps, upsample="nearest", backdrop=b).axes[1] for b in (True, False))
    assert [picture.get_alpha() for picture in with_image.images] == [None, 0.65]
    assert [picture.get_alpha() for picture in alone.images] == [None, 1.0]
    assert len(plot.overlay(images, maps, backdrop=False).png()) < len(plot.overlay(images, maps).png())


@pytest.mark.parametrize("scale", ["each", "shared", "uniform", (0.0, 1.0)])
@pytest.mark.parametrize("value", [0.0, 1 / 3, -2.0, 1e-30])
def test_constant_maps_are_drawn_in_one_colour(scale: Any, value: float) -> None:
    fig = plot.overlay(torch.zeros(1, 3, 9, 9), torch.full((1, 2, 2), value), scale=scale)
    shown = fig.axes[1].images[1]
    colours = {tuple(colour) for colour in shown.to_rgba(shown.get_array()).reshape(-1, 4)}
    assert len(colours) == 1
    assert not any(math.isnan(part) for colour in colours for part in colour)


def test_images_in_bytes_and_in_floats_give_the_same_figure() -> None:
    images = (noise(2, 3, 8, 8) * 255).round().to(torch.uint8)
    maps = softmax_maps(2, 4, 4)
    assert plot.overlay(images, maps).png() == plot.overlay(images.double() / 255, maps.double()).png()


def test_masks_are_outlined_in_white_on_black_and_empty_masks_are_not() -> None:
    masks = torch.zeros(2, 16, 16)
    masks[0, 3:9, 0:5] = 1
    fig = plot.overlay(IMAGES[:2], MAPS["layer13"][:2], masks=masks)
    outlined = [len(axes.collections) for axes in fig.axes if axes.images]
    assert outlined == [1, 1, 0, 0]


def test_gradients_devices_and_lists_of_numbers_are_accepted() -> None:
    maps = softmax_maps(1, 2, 2).requires_grad_()
    plot.overlay(IMAGES[:1].clone().requires_grad_(), maps)
    plot.overlay(IMAGES[0].numpy(), [[0.1, 0.9]])


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
def test_any_size_of_image_and_map_can_be_drawn(n: int, height: int, width: int, h: int, w: int) -> None:
    fig = plot.overlay(noise(n, 3, height, width), noise(n, h, w))
    assert len(limits(fig)) == n


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((noise(2, 1, 8, 8), noise(2, 4, 4)), {}, r"images: got shape \(2, 1, 8, 8\), expected \(N, 3, H, W\)"),
        ((noise(8, 8), noise(2, 4, 4)), {}, "images: got shape"),
        ((noise(0, 3, 8, 8), noise(0, 4, 4)), {}, "at least one image"),
        ((255 * noise(2, 3, 8, 8), noise(2, 4, 4)), {}, r"expected \[0, 1\]; pass the images as they were before"),
        ((noise(2, 3, 8, 8) * float("nan"), noise(2, 4, 4)), {}, r"expected \[0, 1\]"),
        ((noise(2, 3, 8, 8), noise(3, 4, 4)), {}, r"maps\['map'\]: 3 maps for 2 images"),
        ((noise(2, 3, 8, 8), {"layer7": noise(2, 1, 4, 4)}), {}, r"maps\['layer7'\]: got shape \(2, 1, 4, 4\)"),
        ((noise(2, 3, 8, 8), {}), {}, "maps: the dict is empty"),
        ((noise(2, 3, 8, 8), torch.tensor([[[0.0]], [[float("nan")]]])), {}, "map 1 holds NaN"),
        ((noise(2, 3, 8, 8), noise(2, 4, 4)), {"scale": "unifrom"}, "did you mean 'uniform'"),
        ((noise(2, 3, 8, 8), noise(2, 4, 4)), {"scale": (1, 0)}, "low < high"),
        ((noise(2, 3, 8, 8), noise(2, 4, 4)), {"scale": 3}, "expected one of"),
        ((noise(2, 3, 8, 8), noise(2, 4, 4)), {"upsample": "cubic"}, "upsample: got 'cubic'"),
        ((noise(2, 3, 8, 8), noise(2, 4, 4)), {"columns": ["A"]}, "columns: got .* list of 2"),
        ((noise(2, 3, 8, 8), noise(2, 4, 4)), {"columns": "AB"}, "columns: got 'AB'"),
        ((noise(2, 3, 8, 8), noise(2, 4, 4)), {"masks": noise(2, 4, 4)}, r"masks: got shape \(2, 4, 4\)"),
        ((noise(9, 3, 8, 8), noise(9, 4, 4)), {}, "show at most 8"),
    ],
)
def test_faults_of_an_overlay_are_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot.overlay(*arguments, **options)


def test_images_of_whole_numbers_other_than_bytes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"torch.int64, expected uint8"):
        plot.grid(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


# -------------------------------------------------------------------------------------------------- runs and seeds


def test_a_curve_is_the_mean_over_seeds_inside_a_band_from_lowest_to_highest() -> None:
    fig = plot.curves({"dp": SEEDS}, "loss")
    axes = fig.axes[0]
    mean = axes.lines[0].get_ydata()
    assert mean.tolist() == pytest.approx([0.5**e + 0.1 for e in range(1, 6)])
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.5**5, 0.7))
    assert len(axes.lines) == 1 + 3
    assert "dp (3 seeds)" in [text.get_text() for text in fig.legends[0].get_texts()]


def test_one_run_is_one_line_whether_history_or_list() -> None:
    for run in (RECORDS, [RECORDS], History(RECORDS), [History(RECORDS)], {"epochs": RECORDS}):
        axes = plot.curves({"dp": run}).axes[0]
        assert len(axes.lines) == 1
        assert axes.lines[0].get_ydata().tolist() == [record["test_accuracy"] for record in RECORDS]
        assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5]


def test_no_two_of_28_lines_look_the_same_and_neighbours_differ_in_grey() -> None:
    looks = [plot._look(i) for i in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28
    assert all(a["linestyle"] != b["linestyle"] for a, b in pairwise(looks))


def test_an_unknown_metric_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"no metric 'test_acuracy'.*did you mean 'test_accuracy'"):
        plot.curves({"dp": RECORDS}, "test_acuracy")


def test_seeds_with_different_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="'dp': its runs cover different epochs"):
        plot.curves({"dp": [RECORDS, RECORDS[:3]]})


@pytest.mark.parametrize("runs", [{}, RECORDS, {"dp": "runs"}, {"dp": [1.0, 2.0]}])
def test_runs_of_the_wrong_type_are_refused(runs: Any) -> None:
    with pytest.raises(TypeError, match="expected a"):
        plot.curves(runs)


def test_an_empty_list_of_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="'dp': the list of runs is empty"):
        plot.curves({"dp": []})


def test_bars_show_every_seed_the_mean_and_its_number_in_the_order_given_or_sorted() -> None:
    values = {"low": [0.2, 0.4], "high": torch.tensor([0.7, 0.9, 0.8]), "one": 0.5}
    fig = plot.bars(values, "accuracy")
    axes = fig.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["low", "high", "one"]
    assert [text.get_text() for text in axes.texts] == ["0.300", "0.800", "0.500"]
    points = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert points == [pytest.approx([0.2, 0.4]), pytest.approx([0.7, 0.9, 0.8]), [0.5]]
    ordered = plot.bars(values, sort=True).axes[0]
    assert [label.get_text() for label in ordered.get_yticklabels()] == ["high", "one", "low"]


@pytest.mark.parametrize("value", [[], [0.1, float("nan")]])
def test_a_bar_without_finite_values_is_refused(value: list[float]) -> None:
    with pytest.raises(ValueError, match=r"'dp': got .* expected one finite number per seed"):
        plot.bars({"dp": value})


# ------------------------------------------------------------------------------------------------ numbers and lines


def test_cells_print_the_numbers_with_the_places_they_need() -> None:
    fig = plot.cells({"c": [[0, 1], [2, -3]], "a": torch.tensor([0.25, 0.5]), "p": [1 / 3]})
    printed = [[text.get_text() for text in axes.texts] for axes in fig.axes]
    assert printed == [["0", "1", "2", "-3"], ["0.25", "0.50"], ["0.333"]]
    assert [axes.get_title() for axes in fig.axes] == ["c", "a", "p"]


def test_a_stack_of_matrices_takes_titles_and_places() -> None:
    fig = plot.cells(torch.zeros(2, 1, 2), ["first", "second"], decimals=1)
    assert [axes.get_title() for axes in fig.axes] == ["first", "second"]
    assert fig.axes[0].texts[0].get_text() == "0.0"


def test_numbers_in_cells_stand_out_from_their_colour() -> None:
    fig = plot.cells(torch.arange(12.0)[None])
    axes = fig.axes[0]
    colours = axes.images[0].to_rgba(axes.images[0].get_array())[0]
    for text, colour in zip(axes.texts, colours, strict=True):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        contrast = 1.05 / (light + 0.05) if text.get_color() == "white" else (light + 0.05) / 0.05
        assert contrast >= 4.5, (text, contrast)


@pytest.mark.parametrize(
    ("values", "titles", "message"),
    [
        (torch.zeros(13), None, "sides of 1 to 12"),
        (torch.zeros(1, 2, 3, 4), None, "expected a vector or matrix"),
        ({}, None, "the dict is empty"),
        ({"a": [1.0]}, ["b"], "the keys of the dict are the titles"),
        (torch.zeros(2, 2, 2), ["a"], "titles: got"),
    ],
)
def test_faults_of_cells_are_named(values: Any, titles: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot.cells(values, titles)


def test_lines_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'y': 3 values for 2 places"):
        plot.lines([1, 2], {"y": [1, 2, 3]})


def test_a_line_may_have_gaps() -> None:
    assert len(plot.lines([1, 2, 3], {"y": [1, float("nan"), 3]}).axes[0].lines) == 1


def test_scatter_draws_every_point_and_each_line_across_the_figure() -> None:
    fig = plot.scatter({"+": [[1.0, 2.0], [3.0, 0.0]], "-": [0.0, 0.0]}, "a", "b", lines={"border": [[0, 1], [1, 0]]},
                       limits=(-1, 4, -1, 3))  # fmt: skip
    axes = fig.axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[1, 2], [3, 0]]
    assert axes.collections[1].get_offsets().tolist() == [[0, 0]]
    assert (axes.get_xlim(), axes.get_ylim()) == ((-1, 4), (-1, 3))
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["+", "-", "border"]
    (line,) = axes.lines
    assert (*line.get_xy1(), *line.get_xy2()) == (0, 1, 1, 0)


def test_scatter_gives_each_of_many_names_its_own_look() -> None:
    marks = plot.scatter({f"network {i}": [i, i] for i in range(20)}).axes[0].collections
    looks = {(tuple(m.get_facecolor()[0]), m.get_paths()[0].vertices.tobytes()) for m in marks}
    assert len(looks) == 20


@pytest.mark.parametrize(
    ("points", "lines", "message"),
    [
        ({"a": [1.0, 2.0, 3.0]}, None, "points\\['a'\\]: got shape \\(1, 3\\)"),
        ({"a": [[1.0, math.nan]]}, None, "expected finite numbers"),
        ({"a": torch.zeros(0, 2)}, None, "n at least 1"),
        ({"a": [0.0, 0.0]}, {"l": [[1, 1], [1, 1]]}, "two different points"),
        ({"a": [0.0, 0.0]}, {"l": [[1, 1]]}, "two different points"),
    ],
)
def test_scatter_refuses_what_is_no_point_and_no_line(points: Any, lines: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot.scatter(points, lines=lines)
