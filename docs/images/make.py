"""The picture of the README, drawn from a stored report: `python docs/images/make.py` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "benchmarks" / "results" / "sts-b-minilm-gpu-onnxruntime-cpu.json"
PICTURE = Path(__file__).with_name("sts-b.svg")
#: Name in the report -> name in the picture and class of its bars.
ROWS = {"FP32": ("FP32", "base"), "PTQ INT8+FP16": ("INT8, calibrated", "ptq"), "QAT INT8+FP16": ("INT8, QAT", "qat")}
#: Units of the view box.
WIDTH, HEIGHT, LEFT, PANEL, BAR, PITCH = 960, 250, 150, 240, 22, 40
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


def picture(report: dict[str, Any]) -> str:
    """Return the SVG: three panels of horizontal bars from zero."""
    head = report["head"]
    caption = (
        f"{head['models'][0]}, {report['title']}, {head['backends'][0]} on {head['devices'][0]}, {head['date'][:10]}"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{caption}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
    ]
    for number, (label, _) in enumerate(ROWS.values()):
        lines.append(f'<text x="20" y="{96 + number * PITCH}">{label}</text>')
    for place, (title, values) in enumerate(panels(report).items()):
        x, largest = LEFT + 10 + place * (PANEL + 25), max(value for value, _ in values.values())
        lines.append(f'<text class="title" x="{x}" y="46">{title}</text>')
        for number, (name, (_, style)) in enumerate(ROWS.items()):
            value, text = values[name]
            width, y = (PANEL - 60) * value / largest, 80 + number * PITCH
            lines.append(f'<rect class="{style}" x="{x}" y="{y}" width="{width:.1f}" height="{BAR}" rx="3"/>')
            lines.append(f'<text x="{x + width + 8:.1f}" y="{y + 16}">{text}</text>')
    lines += [f'<text class="small" x="20" y="{HEIGHT - 22}">{caption}. No GPU.</text>', "</svg>"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(json.loads(REPORT.read_text(encoding="utf-8"))), encoding="utf-8")
