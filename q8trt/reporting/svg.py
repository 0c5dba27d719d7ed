"""Charts as SVG text whose colours are CSS classes: one picture for light and dark, and no library to draw it.

Marks carry their figures as tooltips (`<title>`). Texts that may be long (titles, legends) belong to the page, where they wrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 24, 40
#: From this ratio of the largest value to the least on, an axis is logarithmic.
_LOG_FROM = 12


@dataclass(frozen=True)
class Point:
    """A mark at (x, y) with its tooltip; `high` is where its whisker ends (a percentile), None for no whisker."""

    x: float
    y: float
    tip: str
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one colour and marker; `index` chooses both, the same in every chart of a page."""

    name: str
    index: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from `low` to `high`, with `ticks` in data units."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where `value` lies, from 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _steps(low: float, high: float) -> tuple[float, ...]:
    """Round numbers from at most `low` to at least `high`, four to seven of them."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def value_axis(values: Sequence[float], from_zero: bool = True) -> Axis:
    """An axis for positive values: from 0, or logarithmic where they span more than a factor of 12.

    Args:
        values: what must fit.
        from_zero: False: a linear axis around the values, at least 1 wide.
    """
    low, high = min(values), max(values)
    if not from_zero:
        middle, half = (low + high) / 2, max(0.6 * (high - low), 0.5)
        ticks = _steps(middle - half, middle + half)
        return Axis(ticks[0], ticks[-1], ticks)
    if low > 0 and high / low > _LOG_FROM:
        first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        marks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
        least = max(mark for mark in marks if mark <= low * 1.001)
        most = min((mark for mark in marks if mark >= high * 0.999), default=marks[-1])
        kept = [mark for mark in marks if least <= mark <= most]
        return Axis(least, most, tuple(kept if len(kept) <= 8 else kept[:: 2 if len(kept) < 13 else 3]), True)
    ticks = _steps(0, high)
    return Axis(0, ticks[-1], ticks)


def choice_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis with a tick at each of the values that were chosen (batches, lengths), with room at both ends."""
    ticks = tuple(sorted(set(values)))
    room = 1.25 if len(ticks) == 1 else (ticks[-1] / ticks[0]) ** 0.06
    return Axis(ticks[0] / room, ticks[-1] * room, ticks, True)


def numbers(ticks: Sequence[float], is_log: bool) -> list[str]:
    """Ticks as text: ``"0.5"``, ``"12"``, ``"20k"``; on a linear axis all with as many decimals as any of them needs."""
    if max(map(abs, ticks)) >= 10_000:
        return [f"{tick / 1000:g}k" for tick in ticks]
    if is_log:
        return [f"{tick:.10g}" for tick in ticks]
    decimals = max(len(f"{tick:.6g}".partition(".")[2]) for tick in ticks)
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _marker(x: float, y: float, index: int, tip: str) -> str:
    """A shape of its own for each series, so that colour is not the only difference."""
    shapes: tuple[Callable[[], str], ...] = (
        lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"',
        lambda: f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"',
        lambda: f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 9.5h-11z"',
        lambda: f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"',
    )
    shape = shapes[index % len(shapes)]()
    return f'{shape} class="mark s{index % 6}"><title>{escape(tip)}</title></path>'.replace(
        "</path>", f"</{shape[1 : shape.index(' ')]}>"
    )


def swatch(index: int) -> str:
    """A series' marker for a legend of the page."""
    return f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{_marker(7, 7, index, "")}</svg>'


def dashed_swatch() -> str:
    """The reference line of `chart` for a legend of the page."""
    line = '<line class="reference" x1="0" x2="14" y1="7" y2="7"/>'
    return f'<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">{line}</svg>'


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    """Grid lines, tick labels and axis titles."""
    parts = []
    for tick, text in zip(y.ticks, numbers(y.ticks, y.is_log), strict=True):
        at = HEIGHT - _BOTTOM - y.place(tick) * (HEIGHT - _TOP - _BOTTOM)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    for tick, text in zip(x.ticks, numbers(x.ticks, x.is_log), strict=True):
        at = _LEFT + x.place(tick) * (WIDTH - _LEFT - _RIGHT)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{text}</text>')
    scale = ", logarithmic" if y.is_log else ""
    parts.append(f'<text class="label" x="4" y="12">{escape(y_label + scale)}</text>')
    middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    labels: tuple[str, str],
    title: str,
    lines: bool = True,
    reference: float | None = None,
) -> str:
    """Series as points, joined by lines if `lines`.

    Args:
        series: at least one point in all.
        x: the horizontal axis.
        y: the vertical axis.
        labels: of the two axes.
        title: for screen readers; the page shows it above.
        lines: join the points of a series.
        reference: where to draw a dashed horizontal line.
    """

    def at(point_x: float, point_y: float) -> tuple[float, float]:
        return (
            _LEFT + x.place(point_x) * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - y.place(point_y) * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = _frame(x, y, *labels)
    if reference is not None:
        _, level = at(x.low, reference)
        parts.append(f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>')
    for each in series:
        places = [at(point.x, point.y) for point in each.points]
        if lines and len(places) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            parts.append(f'<polyline class="line s{each.index % 6}" points="{path}"/>')
        for point, (px, py) in zip(each.points, places, strict=True):
            if point.high is not None:
                top = at(point.x, point.high)[1]
                parts.append(
                    f'<line class="line s{each.index % 6}" x1="{px:.1f}" x2="{px:.1f}" y1="{py:.1f}" y2="{top:.1f}"/>'
                )
            parts.append(_marker(px, py, each.index, point.tip))
    return _svg(HEIGHT, title, parts)


#: A name longer than this many letters is wider than a chart.
_LETTERS = 62


def _shortened(name: str) -> str:
    """The beginning and the end of a long name."""
    half = _LETTERS // 2
    return name if len(name) <= _LETTERS else f"{name[: half - 1]}…{name[-half:]}"


def bars(items: Sequence[tuple[str, float, int, str]], title: str, unit: str, most: float = 0.0) -> str:
    """Horizontal bars from zero, each with its name above and its figure at the end.

    Args:
        items: (name, value, series index, figure as text).
        title: for screen readers.
        unit: what the bars are in.
        most: what must fit too, so that several charts have one scale.
    """
    axis = value_axis([0.0, most, *(value for _, value, _, _ in items)])
    height, room = 24 + 38 * len(items), WIDTH - 16 - 8 * max(len(text) for _, _, _, text in items)
    parts = [f'<text class="label" x="4" y="12">{escape(unit)}</text>']
    for index, (name, value, colour, text) in enumerate(items):
        top = 24 + 38 * index
        length = max(1.0, axis.place(value) * room)
        parts.append(f'<text class="tick" x="4" y="{top + 10}">{escape(_shortened(name))}</text>')
        parts.append(
            f'<rect class="bar s{colour % 6}" x="4" y="{top + 14}" width="{length:.1f}" height="15" rx="2">'
            f"<title>{escape(f'{name}: {text}')}</title></rect>"
        )
        parts.append(f'<text class="figure" x="{length + 10:.1f}" y="{top + 26}">{escape(text)}</text>')
    return _svg(height, title, parts)


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )
