"""Pages from the templates of this folder. A page is self-contained, has no script, and has light and dark colors."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt.reporting.charts import Chart, svg

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Figure:
    """A chart under its title.

    Attributes:
        title: title of the figure.
        place: backend and device of its figures.
        chart: the chart to draw.
        legend: index and name of each series.
        reference: name of the dashed line; "" for no line.
    """

    title: str
    place: str
    chart: Chart
    legend: tuple[tuple[int, str], ...] = ()
    reference: str = ""

    @property
    def svg(self) -> str:
        """The chart as an ``<svg>`` element, whose texts are escaped."""
        return svg(self.chart, f"{self.title}, {self.place}")


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Return the whole HTML document that ``templates/<template>.html.j2`` makes of `values`."""
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    return _environment().get_template(f"{template}.html.j2").render(style=style, **values)
