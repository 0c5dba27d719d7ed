"""Charts of a page, drawn by matplotlib as SVG. Colors are variables of the stylesheet, so light and dark share one picture.

Marks have tooltips with their figures. Titles and legends may be long, so the page draws them and wraps their lines.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Points of 1/72 inch, which are units of the SVG's view box.
WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 24, 40
_BAR_PITCH = 38
#: Ratio of the largest to the smallest value above which an axis is logarithmic.
_LOG_FROM = 12
#: Shapes and sizes of series, as the legend of templates/parts.html.j2 draws them.
_MARKERS = (("o", 9), ("s", 8), ("^", 10.5), ("D", 7.5))
_COLORS = 6
#: A name of more letters than this is wider than a chart.
_LETTERS = 62
#: Placeholder colors for variables of the stylesheet while matplotlib draws.
_VARIABLES = {f"#0000a{index}": f"var(--s{index})" for index in range(_COLORS)} | {
    "#0000b0": "var(--ink)", "#0000b1": "var(--faint)", "#0000b2": "var(--rule)", "#0000b3": "var(--panel)",
}  # fmt: skip
_INK, _FAINT, _RULE, _PANEL = "#0000b0", "#0000b1", "#0000b2", "#0000b3"
_RC: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "q8trt", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12, "text.color": _FAINT,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A mark with its tooltip; `high` is the end of its whisker, such as a percentile, None for no whisker."""

    x: float
    y: float
    tip: str
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one color and marker. `index` chooses them, the same in every chart of a page."""

    name: str
    index: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class LineChart:
    """Series over two axes.

    Attributes:
        series: they have at least one point in total.
        labels: of the horizontal and of the vertical axis.
        x_values: values that the horizontal axis must include.
        y_values: the same for the vertical axis; charts with the same values have the same axes.
        x_is_choice: whether x has a tick at each value (batches, lengths) on a logarithmic axis; otherwise it has round ticks.
        y_from_zero: whether the vertical axis begins at 0 or is logarithmic; otherwise it is linear around its values.
        joined: whether lines join the points of a series.
        reference: height of a dashed line; None for no line.
        y_most: the largest value that is possible, such as 100 for percent, at which a linear vertical axis ends at
            the latest. Round ticks meet 1 and 100.
    """

    series: tuple[Series, ...]
    labels: tuple[str, str]
    x_values: tuple[float, ...]
    y_values: tuple[float, ...]
    x_is_choice: bool = True
    y_from_zero: bool = True
    joined: bool = True
    reference: float | None = None
    y_most: float = math.inf


@dataclass(frozen=True)
class Bar:
    """A bar with its name above it and its figure as text at its end."""

    name: str
    value: float
    index: int
    text: str


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars from zero.

    Attributes:
        bars: from top to bottom.
        unit: of the values.
        limit: value that must also fit, so several charts share one scale.
    """

    bars: tuple[Bar, ...]
    unit: str
    limit: float = 0.0


Chart = LineChart | BarChart


@functools.lru_cache(maxsize=256)
def svg(chart: Chart, title: str) -> str:
    """Return the chart as an ``<svg>`` element; `title` is for screen readers."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        figure, tips = line_figure(chart) if isinstance(chart, LineChart) else bar_figure(chart)
        for artist in figure.findobj():
            artist.set_clip_on(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inlined(buffer.getvalue(), title, tips)


def _inlined(drawn: bytes, title: str, tips: Sequence[str]) -> str:
    """Return matplotlib's file as an element of a page, with tooltips, and without ids of groups."""
    root = ElementTree.fromstring(drawn)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (element.text or "").strip(), ""
        for name in list(element.attrib):
            if name.startswith("{"):
                element.set(f"xlink:{name.rpartition('}')[2]}", element.attrib.pop(name))
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
    for group in root.iter("g"):
        number = group.attrib.pop("id", "").removeprefix("tip-")
        if number.isdigit():
            ElementTree.SubElement(group, "title").text = tips[int(number)]
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"class": "chart", "viewBox": view, "role": "img", "aria-label": title})
    text = ElementTree.tostring(root, encoding="unicode")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text


def line_figure(chart: LineChart) -> tuple[Figure, list[str]]:
    """Return the figure of a chart, and the tooltips of its marks; the N-th belongs to the artist ``tip-N``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes(
        (_LEFT / WIDTH, _BOTTOM / HEIGHT, 1 - (_LEFT + _RIGHT) / WIDTH, 1 - (_TOP + _BOTTOM) / HEIGHT)
    )
    (_choices if chart.x_is_choice else _scale)(axes, "x", chart.x_values)
    is_log = _scale(axes, "y", chart.y_values, chart.y_from_zero, chart.y_most)
    _style(axes)
    axes.set_xlabel(chart.labels[0], color=_FAINT)
    figure.text(4 / WIDTH, 1 - 12 / HEIGHT, chart.labels[1] + (", logarithmic" if is_log else ""))
    if chart.reference is not None:
        axes.axhline(chart.reference, color=_FAINT, linewidth=1.5, dashes=(5 / 1.5, 4 / 1.5))
    tips: list[str] = []
    for series in chart.series:
        color, (marker, size) = f"#0000a{series.index % _COLORS}", _MARKERS[series.index % len(_MARKERS)]
        if chart.joined and len(series.points) > 1:
            axes.plot([each.x for each in series.points], [each.y for each in series.points], color=color, linewidth=2)
        for point in series.points:
            if point.high is not None:
                axes.plot([point.x, point.x], [point.y, point.high], color=color, linewidth=2)
            mark: dict[str, Any] = {"marker": marker, "markersize": size, "markeredgecolor": _PANEL, "linestyle": ""}
            axes.plot(point.x, point.y, color=color, gid=f"tip-{len(tips)}", **mark)
            tips.append(point.tip)
    return figure, tips


def _style(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=_RULE, linewidth=1)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    axes.tick_params(left=False, bottom=False, labelcolor=_INK)


def _choices(axes: Axes, axis: str, values: Sequence[float]) -> None:
    """Give `axis` a tick at each value, on a logarithmic scale with room at both ends."""
    ticks = sorted(set(values))
    room = 1.25 if len(ticks) == 1 else (ticks[-1] / ticks[0]) ** 0.06
    _set(axes, axis, scale="log", lim=(ticks[0] / room, ticks[-1] * room))
    _set(axes, axis, ticks=ticks, ticklabels=[f"{tick:g}" for tick in ticks])


def _scale(axes: Axes, axis: str, values: Sequence[float], from_zero: bool = True, most: float = math.inf) -> bool:
    """Give `axis` round ticks over `values`; return whether it is logarithmic.

    It is if `from_zero` is set and `values` are above 0 and span more than a factor of 12.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    low, high = min(values), max(values)
    is_log = from_zero and low > 0 and high / low > _LOG_FROM
    if is_log:
        room = (high / low) ** 0.04
        low, high = low / room, high * room
        marks = LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,), numticks=12).tick_values(low, high)
        ticks = [float(mark) for mark in marks if low <= mark <= high]
    else:
        # At least half a percent of the values, whatever their unit, so that noise does not fill the axis.
        middle, half = (low + high) / 2, max(0.6 * (high - low), 0.005 * max(abs(low), abs(high))) or 0.5
        ends = (0.0, high or 1.0) if from_zero else (middle - half, middle + half)
        locator = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        ticks = list(map(float, locator.tick_values(ends[0], min(ends[1], most))))
        low, high = ticks[0], ticks[-1]
    _set(axes, axis, scale="log" if is_log else "linear", lim=(low, high))
    _set(axes, axis, ticks=ticks, ticklabels=tick_labels(ticks, is_log))
    return is_log


def _set(axes: Axes, axis: str, **properties: Any) -> None:
    axes.set(**{f"{axis}{name}": value for name, value in properties.items()})


def tick_labels(ticks: Sequence[float], is_log: bool = False) -> list[str]:
    """Return ``"0.5"``, or ``"20k"`` from 10,000 on; below that, all ticks of a linear axis have the same decimals."""
    if max(map(abs, ticks)) >= 10_000:
        return [f"{tick / 1000:g}k" for tick in ticks]
    if is_log:
        return [f"{tick:.10g}" for tick in ticks]
    decimals = max(len(f"{tick:.6g}".partition(".")[2]) for tick in ticks)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def bar_figure(chart: BarChart) -> tuple[Figure, list[str]]:
    """Return the figure of a bar chart, drawn in units of the view box, and its tooltips as `line_figure` does."""
    from matplotlib.figure import Figure

    height = 24 + _BAR_PITCH * len(chart.bars)
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(4, 12, chart.unit)
    room = WIDTH - 16 - 8 * max(len(bar.text) for bar in chart.bars)
    limit = max(chart.limit, *(bar.value for bar in chart.bars)) or 1.0
    for index, bar in enumerate(chart.bars):
        top, length = 24 + _BAR_PITCH * index, max(1.0, bar.value / limit * room)
        axes.text(4, top + 10, _shortened(bar.name), color=_INK)
        color = f"#0000a{bar.index % _COLORS}"
        axes.barh(top + 21.5, length, 15, left=4, color=color, gid=f"tip-{index}")
        axes.text(length + 10, top + 26, bar.text, color=_INK)
    return figure, [f"{bar.name}: {bar.text}" for bar in chart.bars]


def _shortened(name: str) -> str:
    """Return the beginning and the end of a long name."""
    half = _LETTERS // 2
    return name if len(name) <= _LETTERS else f"{name[: half - 1]}…{name[-half:]}"
