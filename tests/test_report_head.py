"""The head of a report: a reader of the page alone knows what was measured."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from report_fixtures import FP32, INT8, TRT, make_report
from rich.console import Console

from q8trt.reporting import Report, print_report
from q8trt.reporting.comparison import side_by_side
from q8trt.reporting.comparison_page import comparison_html, print_side_by_side
from q8trt.reporting.stored import stored_report

FACTS = [
    ("model", "minilm"),
    ("recipe", "gpu"),
    ("precision", "FP32, INT8"),
    ("run", "runs/x"),
    ("data", "STS-B dev, 1500 rows, nyu-mll/glue from the hub"),
    ("device", "AMD EPYC, 2 cores"),
    ("backend", "ONNX Runtime 1.32.0"),
    ("shapes", "1x128, 16x128 (batch x tokens)"),
    ("date", "2026-11-28 03:19 UTC"),
]


@pytest.fixture
def report() -> Report:
    rows = [replace(row, model="minilm", run="runs/x", folder=f"runs/x/{row.name}") for row in (FP32, INT8)]
    origin: dict[str, Any] = {"date_utc": "2026-11-28T04:19:57+01:00"}
    origin |= {"versions": {"onnxruntime": "1.32.0"}, "hardware": {"cpu": "AMD EPYC", "cores": 2, "gpus": []}}
    return replace(make_report(), rows=[rows[0], replace(rows[1], recipe="gpu")], provenance=origin)


def printed(report: Report, **options: Any) -> str:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    print_report(report, console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_every_renderer_begins_with_the_facts(report: Report) -> None:
    assert report.head.facts() == FACTS
    lines = printed(report).splitlines()
    assert lines[0] == "minilm on STS-B"
    assert [tuple(line.split(maxsplit=1)) for line in map(str.strip, lines[1:10])] == FACTS
    assert report.to_markdown().startswith(
        "# minilm on STS-B\n\n" + "".join(f"- {name}: {text}\n" for name, text in FACTS)
    )
    page = report.to_html()
    head = page[: page.index("<h2>")]
    assert all(f"<dt>{name}</dt><dd>{text}</dd>" in head for name, text in FACTS)
    assert "<title>minilm on STS-B</title>" in head


def test_json_holds_the_facts_as_lists(report: Report) -> None:
    data = json.loads(json.dumps(report.to_dict()))
    assert data["head"] == {
        "models": ["minilm"], "recipes": ["gpu"], "precisions": ["fp32", "int8"], "runs": ["runs/x"],
        "data": report.title, "devices": ["AMD EPYC, 2 cores"], "backends": ["ONNX Runtime 1.32.0"],
        "shapes": ["1x128", "16x128"], "date": "2026-11-28 03:19 UTC",
    }  # fmt: skip
    assert [(row["model"], row["recipe"], row["run"]) for row in data["rows"]] == [
        ("minilm", "", "runs/x"), ("minilm", "gpu", "runs/x")
    ]  # fmt: skip


def test_without_quantized_rows_or_scores(report: Report) -> None:
    facts = dict(replace(report, rows=report.rows[:1], rows_evaluated=0).head.facts())
    assert (facts["recipe"], facts["data"]) == ("none", "STS-B, timing only")
    sample = replace(report, is_sample=True)
    assert sample.heading == "minilm on STS-B, built-in sample, not GLUE"
    headed = replace(report, task="sequence-classification")
    assert headed.heading == "minilm, sequence classification"
    assert dict(sample.head.facts())["data"].endswith("built-in sample, not GLUE")


def test_engines_of_two_runs_are_told_apart(report: Report) -> None:
    other = replace(report.rows[1], run="runs/y", recipe="cpu", folder="runs/y/engine")
    mixed = replace(report, rows=[*report.rows, other, replace(TRT, model="minilm", recipe="cpu", run="runs/y")])
    facts = dict(mixed.head.facts())
    assert (facts["recipe"], facts["run"]) == ("gpu, cpu", "runs/x, runs/y")
    assert facts["device"] == f"AMD EPYC, 2 cores, {TRT.device}"
    assert facts["backend"] == "ONNX Runtime 1.32.0, TensorRT"
    text = mixed.to_markdown()
    assert "| QAT INT8 | ONNX Runtime, CPU | minilm | cpu | runs/y/engine |" in text
    assert "## Engines" not in report.to_markdown()


def test_definitions_of_columns_are_for_the_verbose(report: Report) -> None:
    short, long = printed(report), printed(report, verbose=True)
    for definition in ("above 1 is faster than FP32", "Times are the wall time", "samples/s: rows over host wall time"):
        assert definition not in short
        assert definition in long
    assert "Length buckets 16, 128 against fixed 128" in short


def test_the_verdict_comes_last(report: Report) -> None:
    *_, title, sentence, on_cpu = printed(report).splitlines()
    assert title == "Verdict"
    assert sentence.startswith("QAT INT8 is 1.52x as fast as FP32")
    assert on_cpu.startswith("These are ONNX Runtime's figures on the CPU")
    notes = [index for index, line in enumerate(printed(report).splitlines()) if line.startswith("Note: ")]
    assert notes
    assert max(notes) < printed(report).splitlines().index("Verdict")


def test_the_place_of_all_rows_is_not_repeated_on_the_page(report: Report) -> None:
    page = report.to_html()
    assert '<td class="left wraps plain">ONNX Runtime, CPU</td>' not in page
    mixed = replace(report, rows=[*report.rows, TRT]).to_html()
    assert '<td class="left wraps plain">ONNX Runtime, CPU</td>' in mixed


def old(report: Report) -> dict[str, Any]:
    """A report as it was before there were heads."""
    data = json.loads(json.dumps(report.to_dict()))
    del data["head"]
    for row in data["rows"]:
        for name in ("model", "recipe", "run", "is_widened", "against_fp16"):
            del row[name]
    return data


def test_a_new_report_beside_an_old_one(report: Report) -> None:
    both = side_by_side(
        stored_report(json.loads(json.dumps(report.to_dict())), "a.json"), stored_report(old(report), "b.json")
    )
    console = Console(width=160, file=io.StringIO(), color_system=None)
    print_side_by_side(both, console)
    lines = [line.split("  ") for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["model"] == ["minilm", "not recorded"]
    assert cells["recipe"] == ["gpu", "not recorded"]
    assert cells["device"] == ["AMD EPYC, 2 cores"] * 2
    assert cells["data"] == [report.title] * 2
    page = comparison_html(both)
    assert page.index("not recorded") < page.index("<h2>")
    assert both.to_dict()["a"]["head"]["models"] == ("minilm",)
    assert both.to_dict()["b"]["head"]["models"] == ()
