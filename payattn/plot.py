"""Figures of the course: attention maps over images, learning curves, comparisons over seeds, small tensors.

Every function returns a :class:`Figure` and shows nothing: the last value of a notebook cell is drawn once.
Colours stay apart for colour-blind readers (viridis for maps; Okabe and Ito, "Color Universal Design", 2008,
for lines), and line styles and markers keep them apart in grey print.  No figure is wider than 7 inches, no text
is smaller than 9 points, and the scale of every map is written in its figure.
"""

from __future__ import annotations

import difflib
import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib import figure, patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

__all__ = ["Figure", "overlay", "grid", "curves", "bars", "cells", "lines"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SCALES = ("each", "shared", "uniform")
MAX_WIDTH, MAX_COLUMNS, DPI = 7.0, 8, 110
STYLE = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
}
P = ParamSpec("P")


class Figure(figure.Figure):
    """A Matplotlib figure that shows itself once in a notebook and is unknown to pyplot.

    Matplotlib draws a bare ``Figure`` as a picture only after pyplot was loaded with the inline backend; this one
    always does.  The bytes depend on the figure alone, so a notebook that is run again does not change.
    """

    def png(self, dpi: float = DPI) -> bytes:
        """Return the figure as the bytes of a PNG file with ``dpi`` pixels per inch."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def _in_house_style(build: Callable[P, Figure]) -> Callable[P, Figure]:
    """Build a figure with the course's fonts whatever the reader's Matplotlib settings are."""

    @functools.wraps(build)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            made = build(*args, **kwargs)
            made.draw_without_rendering()  # ticks take their font when they are first drawn
        return made

    return styled


# ---------------------------------------------------------------------------------------------- images and maps


def _rgb(images: Any) -> Tensor:
    """Return images as float32 (N, 3, H, W) in [0, 1] on the CPU."""
    batch = torch.as_tensor(images).detach().cpu()
    if batch.ndim == 3:
        batch = batch[None]
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape:
        raise ValueError(
            f"images: got shape {tuple(torch.as_tensor(images).shape)}, expected (N, 3, H, W) or (3, H, W) with at "
            "least one image; for a grey batch (N, 1, H, W) use images.expand(-1, 3, -1, -1)"
        )
    if batch.dtype == torch.uint8:
        return batch.float() / 255
    if not batch.is_floating_point():
        raise TypeError(f"images: got {batch.dtype}, expected uint8 in 0..255 or floating point in [0, 1]")
    batch = batch.float()
    low, high = batch.min().item(), batch.max().item()
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(
            f"images: values run from {low:.3g} to {high:.3g}, expected [0, 1]; pass the images as they were before "
            "normalisation, or divide by 255"
        )
    return batch.clamp(0, 1)


def _maps(maps: Any, n: int) -> dict[str, Tensor]:
    """Return maps as a dict from level to float32 (N, h, w), checked against the number of images."""
    levels = dict(maps) if isinstance(maps, Mapping) else {"map": maps}
    if not levels:
        raise ValueError("maps: the dict is empty; a network without attention has no maps to show")
    checked = {}
    for level, values in levels.items():
        values = torch.as_tensor(values).detach().cpu().float()
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(f"maps[{level!r}]: got shape {tuple(values.shape)}, expected (N, h, w)")
        if len(values) != n:
            raise ValueError(
                f"maps[{level!r}]: {len(values)} maps for {n} images; take the same ones, e.g. maps[{level!r}][:{n}]"
            )
        if not values.isfinite().all():
            first = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(f"maps[{level!r}]: map {first} holds NaN or infinity")
        checked[str(level)] = values
    return checked


def _masks(masks: Any, images: Tensor) -> Tensor | None:
    if masks is None:
        return None
    marked = torch.as_tensor(masks).detach().cpu()
    marked = marked[None] if marked.ndim == 2 else marked
    expected = (len(images), *images.shape[2:])
    if tuple(marked.shape) != expected:
        raise ValueError(f"masks: got shape {tuple(marked.shape)}, expected {expected}, one mask per image")
    return marked.bool()


def _titles(titles: Sequence[str] | None, n: int, what: str) -> list[str]:
    if titles is None:
        return [""] * n
    if isinstance(titles, str) or len(titles) != n:
        raise ValueError(f"{what}: got {titles!r}, expected a list of {n} texts, one per column")
    return [str(title) for title in titles]


def _number(value: float) -> str:
    """Write a number with at most three significant digits: 0.0213, 5.2, 130."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"


def _picture(axes: Axes, pixels: Any, **options: Any) -> None:
    axes.imshow(pixels, **options)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outline(axes: Axes, mask: Tensor) -> None:
    """Draw the edge of a mask white on black, which shows on every image and on every map."""
    height, width = mask.shape
    if mask.any():
        around = F.pad(mask.float(), (1, 1, 1, 1))  # so that an object at the border has a closed outline
        edge = axes.contour(range(-1, width + 1), range(-1, height + 1), around, levels=[0.5], colors="white")
        edge.set(linewidth=1.2, path_effects=[patheffects.withStroke(linewidth=3, foreground="black")])
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _scaled(levels: dict[str, Tensor], scale: Any) -> tuple[dict[str, Tensor], tuple[float, float] | None, str]:
    """Return the maps in the unit of the scale, the common limits (None: each its own) and the scale's name."""
    if isinstance(scale, str):
        if scale not in SCALES:
            close = difflib.get_close_matches(scale, SCALES, n=1) or ["each"]
            raise ValueError(f"scale: got {scale!r}, expected one of {SCALES} or (low, high); did you mean {close[0]!r}?")
        if scale == "each":
            return levels, None, "each map on its own scale"
        if scale == "uniform":  # a softmax over n cells that does not attend gives 1/n everywhere
            levels = {level: values * values[0].numel() for level, values in levels.items()}
        low = min(0.0, *(values.min().item() for values in levels.values()))
        high = max(values.max().item() for values in levels.values())
        unit = "times uniform attention (1/n)" if scale == "uniform" else "weight, one scale for all maps"
        return levels, (low, high if high > low else low + 1), unit
    try:
        low, high = (float(bound) for bound in scale)
    except (TypeError, ValueError):
        raise ValueError(f"scale: got {scale!r}, expected one of {SCALES} or two numbers (low, high)") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"scale: got ({low}, {high}), expected two numbers with low < high")
    return levels, (low, high), "weight, fixed scale"


def _columns(n: int) -> float:
    """Return the width of a column in inches for n images side by side."""
    if n > MAX_COLUMNS:
        raise ValueError(f"{n} images side by side are too small to read; show at most {MAX_COLUMNS}, e.g. images[:8]")
    return min(1.5, (MAX_WIDTH - 1.4) / n)


@_in_house_style
def overlay(
    images: Any,
    maps: Mapping[str, Any] | Any,
    *,
    masks: Any = None,
    columns: Sequence[str] | None = None,
    scale: str | tuple[float, float] = "each",
    upsample: str = "bilinear",
) -> Figure:
    r"""Draw attention maps over their images: the images in the first row, then one row per level.

    A map :math:`a` of :math:`h \times w` cells is enlarged to the image's size and laid in colour over the grey
    image. The range of the values is written under each picture, and the colour bar names the scale.

    Args:
        images: (N, 3, H, W), uint8 or floating point in [0, 1]; at most 8 images.
        maps: dict from level to maps (N, h, w), or one tensor (N, h, w); any resolution.
        masks: (N, H, W), true on the object; drawn as outlines, white on black.
        columns: N texts over the columns, such as class names.
        scale: "each" (every map from its smallest to its largest value), "shared" (one scale for all maps, from 0),
            "uniform" (as shared, in units of 1/n with n = h w, so that 1 is uniform attention at every level), or
            (low, high) for a fixed scale.
        upsample: "bilinear" (``align_corners=False``) or "nearest", which shows the true cells.

    Returns:
        The figure.

    Raises:
        ValueError: for shapes or numbers of maps that do not fit, values that are not finite, an unknown scale.

    Source: drawn as in Learn To Pay Attention, figures 3 and 4 (bilinear), but with the scale written out.

    >>> image = torch.zeros(1, 3, 8, 8)
    >>> figure = overlay(image, {"layer13": torch.full((1, 2, 2), 0.25)}, scale="uniform")
    >>> len(figure.axes)                                   # the image, its map and the colour bar
    3
    """
    pictures = _rgb(images)
    n, _, height, width = pictures.shape
    column, titles = _columns(n), _titles(columns, n, "columns")
    levels, outlines = _maps(maps, n), _masks(masks, pictures)
    if upsample not in ("bilinear", "nearest"):
        raise ValueError(f"upsample: got {upsample!r}, expected 'bilinear' or 'nearest'")
    levels, limits, unit = _scaled(levels, scale)
    rows = 1 + len(levels)
    size = (max(column * n + 1.4, 3.2), max((column * height / width + 0.25) * rows + 0.3, 2.4))
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(rows, n, squeeze=False)
    grey = pictures.mean(1) * 0.8 + 0.1
    for i in range(n):
        _picture(axes[0, i], pictures[i].permute(1, 2, 0), interpolation="nearest")
        axes[0, i].set_title(titles[i])
        for row, (level, values) in enumerate(levels.items(), start=1):
            large = _enlarge(values[i], (height, width), upsample)
            _panel(axes[row, i], grey[i], large, values[i], limits)
            if i == 0:
                axes[row, 0].set_ylabel(f"{level}\n{values.shape[1]} x {values.shape[2]}")
        if outlines is not None:
            for row in range(rows):
                _outline(axes[row, i], outlines[i])
    _colour_bar(fig, axes[1:], limits, unit)
    return fig


def _enlarge(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    corners = False if mode == "bilinear" else None
    return F.interpolate(values[None, None], size=size, mode=mode, align_corners=corners)[0, 0]


def _panel(axes: Axes, grey: Tensor, large: Tensor, values: Tensor, limits: tuple[float, float] | None) -> None:
    """Draw one map over its grey image, with its own range below it."""
    low, high = values.min().item(), values.max().item()
    start, end = limits if limits else (low, high)
    end = end if end > start else start + max(abs(start), 1e-12)  # a constant map takes the lowest colour
    _picture(axes, grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.imshow(large, cmap="viridis", vmin=start, vmax=end, alpha=0.65, interpolation="nearest")
    text = f"all {_number(low)}" if low == high else f"{_number(low)}\u2013{_number(high)}"
    axes.set_xlabel(text, fontsize=9, labelpad=2)


def _colour_bar(fig: Figure, axes: Any, limits: tuple[float, float] | None, unit: str) -> None:
    colours = ScalarMappable(Normalize(*(limits or (0, 1))), "viridis")
    bar = fig.colorbar(colours, ax=axes, fraction=0.08, pad=0.02, aspect=12 * len(axes), alpha=0.8)
    if limits is None:
        bar.set_ticks([0, 1], labels=["min", "max"])
    bar.set_label("\n".join(_wrap(unit, 22 if len(axes) == 1 else 40)), fontsize=9)


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


@_in_house_style
def grid(
    images: Any, titles: Sequence[str] | None = None, *, masks: Any = None, columns: int = MAX_COLUMNS
) -> Figure:
    """Draw images side by side, with a text over each and the outline of its mask.

    Args:
        images: (N, 3, H, W), uint8 or floating point in [0, 1].
        titles: N texts, such as class names.
        masks: (N, H, W), true on the object.
        columns: images per row, at most 8.

    Returns:
        The figure.

    Raises:
        ValueError: for images that are not (N, 3, H, W), or as many titles or masks as do not fit.

    >>> len(grid(torch.zeros(3, 3, 8, 8), ["A", "B", "C"]).axes)
    3
    """
    pictures = _rgb(images)
    n, _, height, width = pictures.shape
    texts, outlines = _titles(titles, n, "titles"), _masks(masks, pictures)
    across = min(n, columns)
    column, rows = _columns(across), math.ceil(n / across)
    fig = Figure(
        figsize=(max(column * across + 0.2, 1.8), (column * height / width + 0.25) * rows + 0.2), layout="constrained"
    )
    axes = fig.subplots(rows, across, squeeze=False).flatten()
    for i in range(n):
        _picture(axes[i], pictures[i].permute(1, 2, 0), interpolation="nearest")
        axes[i].set_title(texts[i])
        if outlines is not None:
            _outline(axes[i], outlines[i])
    for empty in axes[n:]:
        empty.remove()
    return fig


# ------------------------------------------------------------------------------------------------ runs and seeds


def _epochs(run: Any) -> list[Mapping[str, Any]]:
    """Return the per-epoch records of a History or of a list of dicts."""
    records = getattr(run, "epochs", run)
    if isinstance(records, Mapping) and "epochs" in records:  # History.to_dict()
        records = records["epochs"]
    if isinstance(records, (str, Mapping)) or not isinstance(records, Sequence) or not records:
        raise TypeError(f"a run: got {type(run).__name__}, expected a History or a list of one dict per epoch")
    return list(records)


def _runs(value: Any) -> list[list[Mapping[str, Any]]]:
    """Return the runs of one name: a single run, or a list of runs over seeds."""
    single = hasattr(value, "epochs") or isinstance(value, Mapping)
    single = single or (isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Mapping)
                        and "epochs" not in value[0])
    return [_epochs(run) for run in ([value] if single else value)]


def _series(name: str, value: Any, metric: str) -> tuple[list[float], Tensor]:
    """Return the epochs and the metric as (seeds, epochs)."""
    runs = _runs(value)
    if not runs:
        raise ValueError(f"{name!r}: the list of runs is empty")
    for run in runs:
        for record in run:
            if metric not in record:
                known = sorted(record)
                close = difflib.get_close_matches(metric, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{name!r}: no metric {metric!r} in its records, which hold {known}{hint}")
    times = [[float(record.get("epoch", i)) for i, record in enumerate(run, start=1)] for run in runs]
    if any(time != times[0] for time in times):
        raise ValueError(
            f"{name!r}: its runs have {sorted({len(t) for t in times})} epochs or other epoch numbers; a mean over seeds "
            "needs the same epochs in each run"
        )
    return times[0], torch.tensor([[float(record[metric]) for record in run] for run in runs], dtype=torch.float64)


def _look(i: int) -> dict[str, Any]:
    """Return colour and line style of the i-th line; 28 of them differ, also in grey."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}


def _named(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not values:
        raise TypeError(f"{what}: got {type(values).__name__}, expected a dict from name to values with one entry or more")
    return {str(name): value for name, value in values.items()}


def _legend(fig: Figure, axes: Axes) -> None:
    """Put the legend below the axes, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(label) for label in labels)
    fits = max(1, int(fig.get_figwidth() / (0.7 + 0.085 * longest)))
    fig.legend(handles, labels, loc="outside lower center", ncols=min(fits, len(labels)), frameon=False, handlelength=3)


@_in_house_style
def curves(
    runs: Mapping[str, Any], metric: str = "test_accuracy", *, xlabel: str = "epoch", ylabel: str | None = None
) -> Figure:
    """Draw a metric against epochs: the mean over seeds, a band from the lowest to the highest seed, thin seed lines.

    Args:
        runs: dict from name to a History, a list of one dict per epoch, or a list of either (one per seed).
        metric: key of the per-epoch records, such as "test_accuracy" or "loss".
        xlabel: text of the horizontal axis.
        ylabel: text of the vertical axis; the metric's name by default.

    Returns:
        The figure.

    Raises:
        ValueError: for an unknown metric, or seeds with different epochs.

    >>> seeds = [[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], [{"epoch": 1, "loss": 2.2}, {"epoch": 2, "loss": 0.8}]]
    >>> curves({"dp": seeds}, "loss").axes[0].get_ylabel()
    'loss'
    """
    fig = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = fig.subplots()
    for i, (name, value) in enumerate(_named(runs, "runs").items()):
        epochs, values = _series(name, value, metric)
        look, seeds = _look(i), len(values)
        label = f"{name} ({seeds} seeds)" if seeds > 1 else name
        marker = MARKERS[i % len(MARKERS)] if len(epochs) <= 25 else ""
        axes.plot(epochs, values.mean(0), linewidth=2, marker=marker, markersize=4, label=label, **look)
        if seeds > 1:
            axes.fill_between(epochs, values.amin(0), values.amax(0), color=look["color"], alpha=0.15, linewidth=0)
            axes.plot(epochs, values.T, linewidth=0.6, alpha=0.6, **look)
    axes.set(xlabel=xlabel, ylabel=metric.replace("_", " ") if ylabel is None else ylabel)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.02)
    _legend(fig, axes)
    return fig


@_in_house_style
def bars(
    values: Mapping[str, Any],
    ylabel: str = "test accuracy",
    *,
    sort: bool = False,
    reference: Mapping[str, float] | None = None,
) -> Figure:
    """Draw every seed as a point and the mean as a tick with its number, one line per name.

    Points and not filled bars: a bar would have to start at zero and would hide the spread.

    Args:
        values: dict from name to the values over seeds (or one number).
        ylabel: text of the value axis.
        sort: put the highest mean on top instead of keeping the order given.
        reference: dict from name to a value drawn as a grey line, such as {"chance": 0.1}.

    Returns:
        The figure.

    Raises:
        ValueError: for a name without values, or values that are not finite.

    >>> bars({"control": [0.81, 0.84], "dp": [0.70, 0.78]}).axes[0].get_xlabel()
    'test accuracy'
    """
    seeds = {}
    for name, value in _named(values, "values").items():
        points = torch.as_tensor(value, dtype=torch.float64).flatten()
        if not len(points) or not points.isfinite().all():
            raise ValueError(f"{name!r}: got {value!r}, expected one finite number per seed and at least one")
        seeds[name] = points
    if sort:
        seeds = dict(sorted(seeds.items(), key=lambda item: -item[1].mean().item()))
    fig = Figure(figsize=(6.5, 0.9 + 0.34 * len(seeds)), layout="constrained")
    axes = fig.subplots()
    for row, (name, points) in enumerate(seeds.items()):
        mean, colour = points.mean().item(), COLOURS[0]
        axes.plot([points.min(), points.max()], [row, row], color=colour, linewidth=1, alpha=0.5)
        axes.plot(points, [row] * len(points), "o", color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot([mean], [row], "|", color="#000000", markersize=15, markeredgewidth=2)
        axes.annotate(f"{mean:.3f}", (1, row), xycoords=("axes fraction", "data"), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=9)
    for name, place in (reference or {}).items():
        axes.axvline(place, color="#777777", linestyle="--", linewidth=1, zorder=0)
        axes.annotate(name, (place, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                      ha="center", va="bottom", fontsize=9)
    axes.set(xlabel=ylabel, yticks=range(len(seeds)), yticklabels=list(seeds), ylim=(len(seeds) - 0.4, -0.6))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return fig
