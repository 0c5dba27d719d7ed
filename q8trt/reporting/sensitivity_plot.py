"""The picture of a sensitivity measurement, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from q8trt import files
from q8trt.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
_COLORMAP = "YlOrRd"
_INK, _FAINT = "#333333", "#d9d9d9"


@dataclass(frozen=True)
class SensitivityPlot:
    """The costs that `plot_sensitivity` draws. Costs are >= 0, all in `unit`.

    Attributes:
        title: the first line.
        subtitle: the second line, in a smaller font: task, rows, and the cost of all sites together.
        unit: of the costs, for the color bar.
        cells: (site name, layer) -> cost of that site alone; a pair that is absent is drawn as not quantized.
        layers: layer -> cost of all its sites together.
        names: site name -> cost of that site in all layers together.
        outside: site outside the layers (embeddings, pooler, classifier) -> cost of that site alone.
    """

    title: str
    subtitle: str
    unit: str
    cells: Mapping[tuple[str, int], float]
    layers: Mapping[int, float]
    names: Mapping[str, float]
    outside: Mapping[str, float]


def plot_sensitivity(path: str | Path, plot: SensitivityPlot) -> None:
    """Draw a heat map, site names x layers, with bars for whole layers above it and for whole sites on the right.

    Colors and bars have one logarithmic scale, because costs span several powers of ten. A cost of exactly 0 has the lightest
    color and no bar.

    Args:
        path: ends in .png or .svg; written whole or not at all.
        plot: the figures.

    Raises:
        ConfigError: `path` has another ending.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ConfigError(f"{path}: a plot must end in {' or '.join(FORMATS)}")
    figure = sensitivity_figure(plot)
    with files.atomic_file(path) as temporary:
        figure.savefig(temporary, format=ending[1:], dpi=150)


def sensitivity_figure(plot: SensitivityPlot) -> Figure:
    """Return the figure of `plot_sensitivity`, whose axes are labeled "layers", "sites", "names", "legend" and "outside".

    The color bar is an inset of "legend", labeled "scale". A recipe without sites in the layers has only "outside", and one
    without other sites has all but "outside".
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heights = [1.2, 0.3 * len(plot.names)] if plot.names else []
    heights += [0.3 * len(plot.outside)] if plot.outside else []
    widths = [0.62 * max(len(plot.layers), 6), 2.8]
    width, height = sum(widths) + 2.2, sum(heights) + 0.45 * len(heights) + 0.9
    below_title = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.75 / height))
    figure = Figure(figsize=(width, height), layout=below_title)
    figure.text(0.1 / width, 1 - 0.1 / height, plot.title, fontsize=12, weight="bold", va="top")
    figure.text(0.1 / width, 1 - 0.4 / height, plot.subtitle, fontsize=9, va="top", color=_INK)
    grid, norm = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=widths), _norm(plot)
    if plot.names:
        sites = figure.add_subplot(grid[1, 0], label="sites")
        image = _heat_map(sites, plot, norm)
        _layer_bars(figure.add_subplot(grid[0, 0], label="layers", sharex=sites), plot, norm)
        names = figure.add_subplot(grid[1, 1], label="names", sharey=sites)
        _bars(names, plot.names, norm, "a site in all layers together")
        names.tick_params(labelleft=False)
        _scale(figure, figure.add_subplot(grid[0, 1], label="legend"), image, plot.unit)
    if plot.outside:
        outside = figure.add_subplot(grid[-1, 0], label="outside")
        _bars(outside, plot.outside, norm, "sites outside the layers")
        outside.set_yticks(range(len(plot.outside)), list(plot.outside))
        outside.invert_yaxis()
    for axes in figure.axes:
        axes.tick_params(labelsize=8, colors=_INK)
    return figure


def _scale(figure: Figure, corner: Axes, image: Any, unit: str) -> None:
    """Draw the color bar in the corner beside the bars of the layers."""
    corner.set_axis_off()
    bar = figure.colorbar(
        image, cax=corner.inset_axes((0.04, 0.35, 0.92, 0.16), label="scale"), orientation="horizontal"
    )
    bar.ax.set_title(unit, fontsize=9, loc="left", color=_INK)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, length=0)


def _norm(plot: SensitivityPlot) -> LogNorm:
    """Return one scale for all panels, from the least to the greatest cost above 0."""
    from matplotlib.colors import LogNorm

    groups: Sequence[Mapping[Any, float]] = (plot.cells, plot.layers, plot.names, plot.outside)
    costs = [cost for group in groups for cost in group.values() if cost > 0] or [1.0]
    low, high = min(costs), max(costs)
    return LogNorm(low, high) if low < high else LogNorm(low / 10, high * 10)


def _heat_map(axes: Axes, plot: SensitivityPlot, norm: LogNorm) -> Any:
    """Draw the cells with their costs as text, so that the picture can be read without its colors."""
    import numpy as np
    from matplotlib import colormaps

    names, layers = list(plot.names), sorted(plot.layers)
    costs = np.full((len(names), len(layers)), np.nan)
    for (name, layer), cost in plot.cells.items():
        costs[names.index(name), layers.index(layer)] = max(cost, float(norm.vmin or 0.0))
    axes.set_facecolor(_FAINT)
    image = axes.imshow(costs, aspect="auto", cmap=colormaps[_COLORMAP], norm=norm)
    for (name, layer), cost in plot.cells.items():
        row, column = names.index(name), layers.index(layer)
        ink = "white" if norm(costs[row, column]) > 0.65 else _INK
        axes.text(column, row, _short(cost), ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("layer", fontsize=9, color=_INK)
    _plain(axes)
    return image


def _short(cost: float) -> str:
    """Return one digit and the power of ten: ``"3e-5"``, ``"0"``."""
    if cost == 0:
        return "0"
    digit, power = f"{cost:.0e}".split("e")
    return f"{digit}e{int(power)}"


def _layer_bars(axes: Axes, plot: SensitivityPlot, norm: LogNorm) -> None:
    costs = [plot.layers[layer] for layer in sorted(plot.layers)]
    _log(axes, "y", norm)
    bars = axes.bar(range(len(costs)), costs, width=0.7, color=_colors(costs, norm))
    axes.bar_label(bars, [_short(cost) for cost in costs], fontsize=7, padding=1, color=_INK)
    axes.set_title("all sites of a layer together", fontsize=9, loc="left", color=_INK)
    axes.tick_params(labelbottom=False)
    _plain(axes)


def _bars(axes: Axes, costs: Mapping[str, float], norm: LogNorm, title: str) -> None:
    values = list(costs.values())
    _log(axes, "x", norm)
    bars = axes.barh(range(len(values)), values, height=0.7, color=_colors(values, norm))
    axes.bar_label(bars, [_short(cost) for cost in values], fontsize=7, padding=2, color=_INK)
    axes.set_title(title, fontsize=9, loc="left", color=_INK)
    _plain(axes)


def _colors(costs: Sequence[float], norm: LogNorm) -> Any:
    from matplotlib import colormaps

    return [colormaps[_COLORMAP](norm(max(cost, float(norm.vmin or 0.0)))) for cost in costs]


def _log(axes: Axes, axis: Literal["x", "y"], norm: LogNorm) -> None:
    """Make an axis logarithmic over the common scale. It begins below the smallest cost, so that cost has a visible bar."""
    low, high = float(norm.vmin or 1.0), float(norm.vmax or 1.0)
    room = (high / low) ** 0.25  # for the figures at the ends of the bars
    limits = (low / room**0.2, high * room)
    if axis == "y":
        axes.set_yscale("log")
        axes.set_ylim(limits)
    else:
        axes.set_xscale("log")
        axes.set_xlim(limits)
    axes.grid(axis=axis, color=_FAINT, linewidth=0.6)
    axes.minorticks_off()
    axes.set_axisbelow(True)


def _plain(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
