"""The pictures of the README, drawn from a stored report: `python docs/images/make.py` writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "benchmarks" / "results" / "sts-b-minilm-gpu-onnxruntime-cpu.json"
#: Name in the report -> name in the picture and class of its bars.
ROWS = {"FP32": ("FP32", "base"), "PTQ INT8+FP16": ("INT8, calibrated", "ptq"), "QAT INT8+FP16": ("INT8, QAT", "qat")}
#: Picture -> panels in a row. The narrow one is for phones.
PICTURES = {Path(__file__).with_name("sts-b.svg"): 3, Path(__file__).with_name("sts-b-narrow.svg"): 1}
#: Units of the view box.
LEFT, PANEL, GAP, BAR, PITCH, TITLE = 160, 240, 25, 22, 40, 46
_STYLE = """
  text { font: 15px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600 } .small { font-size: 13px; fill: #57606a }
  .card { fill: #ffffff; stroke: #d0d7de } .base { fill: #8c959f } .ptq { fill: #4aa8a0 } .qat { fill: #00796b }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9da7b1 } .card { fill: #161b22; stroke: #30363d }
    .base { fill: #6e7681 } .ptq { fill: #2f8f86 } .qat { fill: #4fd1c5 }
  }
"""


def panels(report: dict[str, Any]) -> dict[str, dict[str, tuple[float, str]]]:
    """Return title -> row of the report -> (value, text) for the score, the latency and the size."""
    rows = {row["name"]: row for row in report["rows"] if row["name"] in ROWS}
    scores = {name: 100 * row["metrics"][report["main_metric"]] for name, row in rows.items()}
    latencies = {
        name: next(each["median_ms"] for each in row["latencies"] if (each["batch"], each["sequence"]) == (16, 128))
        for name, row in rows.items()
    }
    return {
        f"{report['main_metric'].capitalize()} x100": {name: (value, f"{value:.2f}") for name, value in scores.items()},
        "Latency at 16x128, ms": {name: (value, f"{value:.0f}") for name, value in latencies.items()},
        "ONNX file, MiB": {name: (row["onnx_mib"], f"{row['onnx_mib']:.1f}") for name, row in rows.items()},
    }


def picture(report: dict[str, Any], columns: int) -> str:
    """Return the SVG: panels of horizontal bars from zero, `columns` of them in a row."""
    head, titles = report["head"], panels(report)
    facts = [
        f"{head['models'][0]}, {report['title']}",
        f"{head['backends'][0]} on {head['devices'][0]}",
        f"{head['date'][:10]}. No GPU.",
    ]
    caption = ",\n".join(facts).splitlines() if columns == 1 else [", ".join(facts)]
    panel_height = TITLE + PITCH * len(ROWS)
    bottom = panel_height * math.ceil(len(titles) / columns)
    width, height = LEFT + columns * (PANEL + GAP) + 5, bottom + 32 + 20 * len(caption)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{', '.join(facts)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
    ]
    for place, (title, values) in enumerate(titles.items()):
        x, top = LEFT + place % columns * (PANEL + GAP), place // columns * panel_height + TITLE
        lines += [f'<text class="title" x="{x}" y="{top}">{title}</text>', *_bars(values, x, top)]
    for number, line in enumerate(caption):
        lines.append(f'<text class="small" x="20" y="{bottom + 36 + 20 * number}">{line}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bars(values: dict[str, tuple[float, str]], x: int, top: int) -> Iterator[str]:
    """Yield the bars of a panel with their values; those at the left edge also have the names of the rows."""
    largest = max(value for value, _ in values.values())
    for number, (row, (label, style)) in enumerate(ROWS.items()):
        value, text = values[row]
        width, y = (PANEL - 60) * value / largest, top + 34 + number * PITCH
        if x == LEFT:
            yield f'<text x="20" y="{y}">{label}</text>'
        yield f'<rect class="{style}" x="{x}" y="{y - 16}" width="{width:.1f}" height="{BAR}" rx="3"/>'
        yield f'<text x="{x + width + 8:.1f}" y="{y}">{text}</text>'


if __name__ == "__main__":
    stored = json.loads(REPORT.read_text(encoding="utf-8"))
    for path, columns in PICTURES.items():
        path.write_text(picture(stored, columns), encoding="utf-8")
