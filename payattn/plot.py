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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib import figure, patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageChops
from torch import Tensor

__all__ = ["Figure", "bars", "cells", "curves", "grid", "lines", "overlay", "scatter", "spans"]

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

    def png(self, dpi: float = DPI, bits: int = 5) -> bytes:
        """Return the figure as a small PNG file.

        Drawings have few colours and take a palette of 256. Pictures with more colours keep ``bits`` bits in each
        channel, so that a colour is never further than half a step, 255 / (2^bits - 1) / 2, from the true one.

        Args:
            dpi: pixels per inch.
            bits: 1 to 8 bits in each channel.

        Returns:
            The bytes of the file.
        """
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        picture = Image.open(buffer).convert("RGB")
        few = picture.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
        error = ImageChops.difference(picture, few.convert("RGB")).split()
        counts = ImageChops.lighter(ImageChops.lighter(error[0], error[1]), error[2]).histogram()
        if sum(counts[9:]) > 0.001 * sum(counts):  # a palette would falsify the colour bar
            step = 255 / (2**bits - 1)
            few = picture.point([round(round(level / step) * step) for level in range(256)] * 3)
        buffer = io.BytesIO()
        few.save(buffer, format="png", optimize=True)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def _in_house_style(build: Callable[P, Figure]) -> Callable[P, Figure]:
    """Build a figure with the course's fonts whatever the reader's Matplotlib settings are."""

    @functools.wraps(build)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
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


def _span(low: float, high: float) -> tuple[str, str]:
    """Write two numbers with the same decimals, enough to tell them apart: 0.001 and 0.021."""
    size, gap = float(f"{max(abs(low), abs(high)):.1e}"), high - low
    if gap == 0 or not 1e-5 <= size < 1e5:
        return f"{low:.2g}", f"{high:.2g}"
    digits = 2 if gap > size / 10 else 1 - math.floor(math.log10(gap / size))
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    decimals += 0.5 * 10.0**-decimals > 0.06 * gap  # 2.5 and 10.5 need another one
    first, last = (f"{value:.{decimals}f}" for value in (low, high))
    return ("0" if float(first) == 0 else first), last


def _picture(axes: Axes, pixels: Tensor, masks: Tensor | None, i: int, **options: Any) -> None:
    axes.imshow(pixels.numpy(), interpolation="nearest", **options)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if masks is not None:
        _outline(axes, masks[i])


def _outline(axes: Axes, mask: Tensor) -> None:
    """Draw the edge of a mask white on black, which shows on every image and on every map."""
    height, width = mask.shape
    if mask.any():
        around = F.pad(mask.float(), (1, 1, 1, 1))  # so that an object at the border has a closed outline
        edge = axes.contour(range(-1, width + 1), range(-1, height + 1), around.numpy(), levels=[0.5], colors="white")
        edge.set(linewidth=1.2, path_effects=[patheffects.withStroke(linewidth=3, foreground="black")])
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _scaled(levels: dict[str, Tensor], scale: Any) -> tuple[dict[str, Tensor], tuple[float, float] | None, str]:
    """Return the maps in the unit of the scale, the common limits (None: each its own) and the scale's name."""
    if isinstance(scale, str):
        if scale not in SCALES:
            close = difflib.get_close_matches(scale, SCALES, n=1) or ["each"]
            known = f"expected one of {SCALES} or (low, high)"
            raise ValueError(f"scale: got {scale!r}, {known}; did you mean {close[0]!r}?")
        if scale == "each":
            return levels, None, "each map on its own scale"
        if scale == "uniform":  # a softmax over n cells that does not attend gives 1/n everywhere
            levels = {level: values * values[0].numel() for level, values in levels.items()}
        low = min(0.0, *(values.min().item() for values in levels.values()))
        high = max(values.max().item() for values in levels.values())
        unit = "times uniform, 1/n" if scale == "uniform" else "weight, one scale"
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
    backdrop: bool = True,
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
        backdrop: let grey image and outline show on the maps; without it their colours are those of the colour bar, and
            the file is much smaller.

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
    rows, (labels, label_lines) = 1 + len(levels), _range_labels(levels, column)
    text = 0.08 + 0.15 * label_lines
    tall = column * height / width * rows + text * len(levels) + (0.3 if columns else 0.1)
    fig = Figure(figsize=(column * n + 1.4, max(tall, 2.2)), layout="compressed")
    spots = fig.add_gridspec(rows, n + 1, width_ratios=[1.0] * n + [0.12 / column])
    for i in range(n):
        axes = fig.add_subplot(spots[0, i], title=titles[i])
        _picture(axes, pictures[i].permute(1, 2, 0), outlines, i)
        for row, (level, values) in enumerate(levels.items(), start=1):
            axes = fig.add_subplot(spots[row, i])
            grey = pictures[i].mean(0) * 0.8 + 0.1 if backdrop else torch.ones(height, width)
            _picture(axes, grey, outlines if backdrop else None, i, cmap="gray", vmin=0, vmax=1)
            large = _enlarge(values[i], (height, width), upsample)
            _heat(axes, large, limits or _range(values[i]), alpha=0.65 if backdrop else 1.0)
            axes.set_xlabel(labels[level][i], fontsize=9, labelpad=2)
            if i == 0:
                axes.set_ylabel(f"{level}\n{values.shape[1]} x {values.shape[2]}")
    beside = spots[1:, n] if rows > 2 else spots[:, n]  # one row is lower than the text of the bar is long
    _colour_bar(fig, fig.add_subplot(beside), limits, unit)
    return fig


def _range_labels(levels: dict[str, Tensor], column: float) -> tuple[dict[str, list[str]], int]:
    """Return the range of each map as a text, and in how many lines, so that neighbours do not touch."""
    spans = {level: [_span(*_range(v)) for v in values] for level, values in levels.items()}
    longest = max(len(low) + len(high) + 1 for texts in spans.values() for low, high in texts)
    lines = 1 if 0.08 * longest < column else 2  # a digit at 9 points is 0.08 inches wide
    joint = "\u2013" if lines == 1 else "\u2013\n"
    texts = {
        level: [f"all {low}" if low == high else f"{low}{joint}{high}" for low, high in pairs]
        for level, pairs in spans.items()
    }
    return texts, lines


def _enlarge(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    corners = False if mode == "bilinear" else None
    return F.interpolate(values[None, None], size=size, mode=mode, align_corners=corners)[0, 0]


def _range(values: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value, the same number twice where they differ by rounding only."""
    low, high = values.min().item(), values.max().item()
    return (low, high) if high - low > 1e-5 * max(abs(low), abs(high)) else (high, high)


def _heat(axes: Axes, values: Tensor, limits: tuple[float, float], alpha: float) -> None:
    low, high = limits
    high = high if high > low else low + max(abs(low), 1.0)  # a constant map takes the lowest colour, its rounding none
    axes.imshow(values.numpy(), cmap="viridis", vmin=low, vmax=high, alpha=alpha, interpolation="nearest")


def _colour_bar(fig: Figure, axes: Axes, limits: tuple[float, float] | None, unit: str) -> None:
    bar = fig.colorbar(ScalarMappable(Normalize(*(limits or (0, 1))), "viridis"), cax=axes, alpha=0.8)
    if limits is None:
        bar.set_ticks([0, 1], labels=["min", "max"])
    bar.set_label(unit, fontsize=9)


@_in_house_style
def grid(images: Any, titles: Sequence[str] | None = None, *, masks: Any = None, columns: int = MAX_COLUMNS) -> Figure:
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
    tall = (column * height / width + (0.3 if titles else 0.06)) * rows
    fig = Figure(figsize=(max(column * across + 0.2, 1.8), tall + 0.1), layout="compressed")
    for i in range(n):
        axes = fig.add_subplot(rows, across, i + 1, title=texts[i])
        _picture(axes, pictures[i].permute(1, 2, 0), outlines, i)
    return fig


@_in_house_style
def cells(
    values: Mapping[str, Any] | Any, titles: Sequence[str] | None = None, *, decimals: int | None = None
) -> Figure:
    """Draw small tensors as tables of coloured cells with the number written in each.

    For worked examples that can be followed by hand. The colours run from the smallest to the largest number of
    each tensor; the numbers are the values.

    Args:
        values: a vector (W,), a matrix (H, W), a stack (K, H, W), or a dict from title to vector or matrix.
        titles: K texts for a stack, or one text for a single tensor.
        decimals: places after the point; by default as many as the values need, at most 3.

    Returns:
        The figure.

    Raises:
        ValueError: for a side over 12, which could not be read.

    >>> figure = cells({"scores": [[0.0, 1.0]], "weights": [[0.269, 0.731]]})
    >>> [text.get_text() for text in figure.axes[1].texts]
    ['0.269', '0.731']
    """
    tables = _tables(values, titles)
    wide = max(table.shape[1] for table in tables.values())
    tall = max(table.shape[0] for table in tables.values())
    texts = {title: _cell_texts(table, decimals) for title, table in tables.items()}
    longest = max(len(text) for rows in texts.values() for row in rows for text in row)
    cell = 0.12 + 0.085 * max(longest, 3)
    across = max(1, min(len(tables), int(MAX_WIDTH / (cell * wide + 0.2))))
    rows = math.ceil(len(tables) / across)
    size = (min(MAX_WIDTH, (cell * wide + 0.2) * across), (0.36 * tall + 0.4) * rows)
    fig = Figure(figsize=size, layout="constrained")
    for i, (title, table) in enumerate(tables.items()):
        axes = fig.add_subplot(rows, across, i + 1, title=title, xticks=[], yticks=[])
        low, high = table.min().item(), table.max().item()
        axes.spines[:].set_visible(False)
        shown = axes.imshow(
            table.numpy(), cmap="viridis", vmin=low, vmax=high if high > low else low + 1, aspect="auto"
        )
        colours = shown.to_rgba(table.numpy())
        for y, row in enumerate(texts[title]):
            for x, text in enumerate(row):
                axes.text(x, y, text, ha="center", va="center", fontsize=10, color=_readable_on(colours[y, x]))
    return fig


def _readable_on(colour: Sequence[float]) -> str:
    """Return black or white, whichever has the higher contrast to a colour (WCAG 2: at least 4.5)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"


def _tables(values: Any, titles: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the tensors to print as a dict from title to matrix."""
    if isinstance(values, Mapping):
        if titles is not None:
            raise ValueError("titles: the keys of the dict are the titles already; pass one or the other")
        stack = {str(title): torch.as_tensor(value) for title, value in values.items()}
    else:
        whole = torch.as_tensor(values)
        parts = list(whole) if whole.ndim == 3 else [whole]
        names = _titles([titles] if isinstance(titles, str) else titles, len(parts), "titles")
        stack = {name or "\u200b" * i: part for i, (name, part) in enumerate(zip(names, parts, strict=True))}
    tables = {}
    for title, value in stack.items():
        table = value.detach().cpu().double()
        table = table.reshape(1, -1) if table.ndim < 2 else table
        if table.ndim != 2 or 0 in table.shape or max(table.shape) > 12:
            raise ValueError(
                f"{title or 'values'}: got shape {tuple(value.shape)}, expected a vector or matrix with sides of 1 to "
                "12; larger ones cannot be read as numbers: use plot.overlay"
            )
        tables[title] = table
    if not tables:
        raise ValueError("values: the dict is empty")
    return tables


def _cell_texts(table: Tensor, decimals: int | None) -> list[list[str]]:
    if decimals is None:
        finite = table[table.isfinite()]
        decimals = next((d for d in range(3) if torch.allclose(finite, finite.round(decimals=d), atol=1e-6)), 3)
    return [[f"{value:.{decimals}f}" for value in row] for row in table.tolist()]


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
    single = single or (
        isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Mapping) and "epochs" not in value[0]
    )
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
            f"{name!r}: its runs cover different epochs (they have {sorted({len(time) for time in times})} records); "
            "a mean over seeds needs the same epochs in each run"
        )
    return times[0], torch.tensor([[float(record[metric]) for record in run] for run in runs], dtype=torch.float64)


def _look(i: int) -> dict[str, Any]:
    """Return colour and line style of the i-th line; 28 of them differ, also in grey."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i % len(STYLES)]}


def _named(values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not values:
        raise TypeError(f"{what}: got {type(values).__name__}, expected a dict from name to values, not empty")
    return {str(name): value for name, value in values.items()}


def _legend(fig: Figure, axes: Axes) -> None:
    """Put the legend below the axes in as many columns as fit, and make the figure higher by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    fits = max(1, int(fig.get_figwidth() / (0.7 + 0.085 * max(len(label) for label in labels))))
    fig.set_figheight(fig.get_figheight() + 0.2 * math.ceil(len(labels) / fits))
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

    >>> first = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    >>> second = [{"epoch": 1, "loss": 2.2}, {"epoch": 2, "loss": 0.8}]
    >>> curves({"dp": [first, second]}, "loss").axes[0].get_ylabel()
    'loss'
    """
    series = {name: _series(name, value, metric) for name, value in _named(runs, "runs").items()}
    fig = Figure(figsize=(6.0, 3.0), layout="constrained")
    axes = fig.subplots()
    for i, (name, (epochs, values)) in enumerate(series.items()):
        look, seeds = _look(i), len(values)
        label = f"{name} ({seeds} seeds)" if seeds > 1 else name
        marker = MARKERS[i % len(MARKERS)] if len(epochs) <= 25 else ""
        axes.plot(epochs, values.mean(0).numpy(), linewidth=2, marker=marker, markersize=4, label=label, **look)
        if seeds > 1:
            axes.fill_between(
                epochs, values.amin(0).numpy(), values.amax(0).numpy(), color=look["color"], alpha=0.15, linewidth=0
            )
            axes.plot(epochs, values.T.numpy(), linewidth=0.6, alpha=0.6, **look)
    axes.set(xlabel=xlabel, ylabel=metric.replace("_", " ") if ylabel is None else ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    for row, points in enumerate(seeds.values()):
        mean, colour = points.mean().item(), COLOURS[0]
        axes.plot([points.min().item(), points.max().item()], [row, row], color=colour, linewidth=1, alpha=0.5)
        axes.plot(points.numpy(), [row] * len(points), "o", color=colour, markersize=5, alpha=0.6, markeredgewidth=0)
        axes.plot([mean], [row], "|", color="#000000", markersize=15, markeredgewidth=2)
        axes.annotate(
            f"{mean:.3f}",
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    for name, place in (reference or {}).items():
        axes.axvline(place, color="#777777", linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            name,
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axes.set(xlabel=ylabel, yticks=range(len(seeds)), yticklabels=list(seeds), ylim=(len(seeds) - 0.4, -0.6))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return fig


@_in_house_style
def spans(
    values: Mapping[str, tuple[float, float]], xlabel: str, *, marks: Mapping[str, float] | None = None
) -> Figure:
    """Draw an interval per name, one line each, with a mark inside where one is given.

    Args:
        values: dict from name to the two ends.
        xlabel: text of the axis.
        marks: dict from name to a place within or beside its interval, drawn as a tick.

    Returns:
        The figure.

    Raises:
        ValueError: for ends that are not two finite numbers in order, or a mark of an unknown name.

    >>> spans({"control": (3, 5), "pc": (1, 2)}, "place", marks={"pc": 1.5}).axes[0].get_xlabel()
    'place'
    """
    ends = {name: tuple(map(float, value)) for name, value in _named(values, "values").items()}
    for name, pair in ends.items():
        if len(pair) != 2 or not (math.isfinite(pair[0]) and pair[0] <= pair[1] < math.inf):
            raise ValueError(f"{name!r}: got {values[name]!r}, expected two finite numbers, the smaller first")
    unknown = set(marks or {}) - set(ends)
    if unknown:
        raise ValueError(f"marks: {sorted(unknown)[0]!r} has no interval; names are {', '.join(ends)}")
    fig = Figure(figsize=(6.5, 0.9 + 0.28 * len(ends)), layout="constrained")
    axes = fig.subplots()
    for row, (name, (low, high)) in enumerate(ends.items()):
        axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=6, alpha=0.45, solid_capstyle="round")
        if name in (marks or {}):
            axes.plot([(marks or {})[name]], [row], "|", color="#000000", markersize=13, markeredgewidth=2)
    axes.set(xlabel=xlabel, yticks=range(len(ends)), yticklabels=list(ends), ylim=(len(ends) - 0.4, -0.6))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return fig


@_in_house_style
def lines(
    x: Any,
    ys: Mapping[str, Any],
    xlabel: str = "x",
    ylabel: str = "y",
    *,
    logx: bool = False,
    logy: bool = False,
) -> Figure:
    """Draw functions of one variable, each as a line with its own colour and style.

    Args:
        x: (n,) places on the horizontal axis.
        ys: dict from name to (n,) values; NaN leaves a gap.
        xlabel: text of the horizontal axis.
        ylabel: text of the vertical axis.
        logx: logarithmic horizontal axis.
        logy: logarithmic vertical axis.

    Returns:
        The figure.

    Raises:
        ValueError: for values that are not as many as the places.

    >>> x = torch.linspace(-3, 3, 61)
    >>> len(lines(x, {"tanh": x.tanh(), "sigmoid": x.sigmoid()}, "score", "output").axes[0].lines)
    2
    """
    places = torch.as_tensor(x).detach().cpu().double().flatten()
    fig = Figure(figsize=(6.0, 3.0), layout="constrained")
    axes = fig.subplots()
    for i, (name, y) in enumerate(_named(ys, "ys").items()):
        values = torch.as_tensor(y).detach().cpu().double().flatten()
        if len(values) != len(places):
            raise ValueError(f"{name!r}: {len(values)} values for {len(places)} places on the x axis")
        axes.plot(places.numpy(), values.numpy(), linewidth=2, label=name, **_look(i))
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if logx else "linear", yscale="log" if logy else "linear")
    _legend(fig, axes)
    return fig


@_in_house_style
def scatter(
    points: Mapping[str, Any],
    xlabel: str = "x",
    ylabel: str = "y",
    *,
    lines: Mapping[str, Any] | None = None,
    limits: tuple[float, float, float, float] | None = None,
) -> Figure:
    """Draw points in the plane, each name with its own colour and marker, and straight lines through them.

    Args:
        points: dict from name to (n, 2), or to one pair; drawn as filled markers.
        xlabel: text of the horizontal axis.
        ylabel: text of the vertical axis.
        lines: dict from name to two points, (2, 2): the line through both, as far as the figure reaches.
        limits: left, right, bottom and top of the figure; by default what the points need.

    Returns:
        The figure.

    Raises:
        ValueError: for points that are not (n, 2) or not finite, or a line through a single place.

    >>> figure = scatter({"+": [[1, 1], [2, 0]], "-": [0, 0]}, lines={"border": [[0, 1], [1, 0]]})
    >>> len(figure.axes[0].collections), len(figure.axes[0].lines)
    (2, 1)
    """
    places = {name: _pairs(value, f"points[{name!r}]") for name, value in _named(points, "points").items()}
    through = {name: _pairs(value, f"lines[{name!r}]") for name, value in (lines or {}).items()}
    for name, ends in through.items():
        if len(ends) != 2 or torch.equal(ends[0], ends[1]):
            raise ValueError(f"lines[{name!r}]: got {ends.tolist()}, expected two different points")
    fig = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = fig.subplots()
    for i, (name, value) in enumerate(places.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]  # 49 differ
        axes.scatter(value[:, 0], value[:, 1], s=36, c=colour, marker=marker, alpha=0.75, linewidths=0, label=name)
    axes.margins(0.08)
    left, right, bottom, top = limits or (*axes.get_xlim(), *axes.get_ylim())
    for i, (name, (first, second)) in enumerate(through.items()):
        axes.axline(first.tolist(), second.tolist(), color="#555555", linestyle=STYLES[i % len(STYLES)], label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(left, right), ylim=(bottom, top))
    _legend(fig, axes)
    return fig


def _pairs(value: Any, what: str) -> Tensor:
    """Return points as float64 (n, 2)."""
    pairs = torch.as_tensor(value).detach().cpu().double()
    pairs = pairs[None] if pairs.ndim == 1 else pairs
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or not pairs.isfinite().all():
        raise ValueError(f"{what}: got shape {tuple(pairs.shape)}, expected finite numbers (n, 2) with n at least 1")
    return pairs
