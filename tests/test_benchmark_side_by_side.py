"""Two reports side by side: a ratio across machines or backends never stands alone."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_benchmark_page import Page

from q8trt.cli.main import run_command
from q8trt.quantization.precision import Precision
from q8trt.reporting import Report, Row
from q8trt.reporting.comparison import SideBySide
from q8trt.reporting.comparison import side_by_side as match
from q8trt.reporting.comparison_page import comparison_html, print_side_by_side, write_side_by_side
from q8trt.reporting.stored import stored_report
from q8trt.runtime.timing.latency import summarize


def made(speed: float = 1.0, cpu: str = "EPYC", score: float = 0.86, tensorrt: bool = False) -> dict[str, Any]:
    place = "TensorRT, NVIDIA L4" if tensorrt else "ONNX Runtime, CPU"
    rows = [
        Row(
            name, place, "tensorrt" if tensorrt else "onnxruntime", "NVIDIA L4" if tensorrt else "cpu",
            precision, {"pearson": score}, latencies=[summarize(*shape, [0.01 / speed]) for shape in ((1, 32), (8, 32))],
        )
        for name, precision in (("FP32", Precision.FP32), ("QAT INT8", Precision.INT8))
    ]  # fmt: skip
    origin = {
        "git_commit": "0123456789abcdef", "date_utc": "2026-01-01", "versions": {"onnxruntime": "1.32"},
        "hardware": {"cpu": cpu, "cores": 2, "gpus": []},
    }  # fmt: skip
    return json.loads(json.dumps(Report("STS-B", "dev", "GLUE", False, 9, "f", "pearson", rows, origin).to_dict()))


def matched(a: dict[str, Any], b: dict[str, Any]) -> SideBySide:
    return match(stored_report(a, "a.json"), stored_report(b, "b.json"))


def side_by_side(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return matched(a, b).to_dict()


def test_like_for_like() -> None:
    both = side_by_side(made(), made(speed=2.0, score=0.87))
    assert [(row["name"], row["shape"]) for row in both["rows"]] == [
        ("FP32", "1x32"), ("FP32", "8x32"), ("QAT INT8", "1x32"), ("QAT INT8", "8x32")
    ]  # fmt: skip
    for row in both["rows"]:
        assert (row["a_median_ms"], row["b_median_ms"]) == (pytest.approx(10), pytest.approx(5))
        assert row["b_over_a_speed_ratio"] == pytest.approx(2.0)
        assert row["across"] == []
    assert both["scores"][1]["b_minus_a_points"] == pytest.approx(1.0)


def test_across_machines_and_backends_each_row_says_so() -> None:
    other_cpu = side_by_side(made(), made(cpu="Xeon"))
    assert {tuple(row["across"]) for row in other_cpu["rows"]} == {("device: EPYC, 2 cores | Xeon, 2 cores",)}
    gpu = side_by_side(made(), made(tensorrt=True))
    for row in gpu["rows"]:
        assert row["across"] == ["backend: onnxruntime | tensorrt", "device: EPYC, 2 cores | NVIDIA L4"]
        assert (row["a_place"][:4], row["b_place"][:8]) == ("ONNX", "TensorRT")
    text = printed(matched(made(), made(tensorrt=True)), 200)
    assert text.count("backend and device") == text.count("A: ONNX Runtime, CPU; B: TensorRT, NVIDIA L4") == 4
    assert "like for like" not in text
    assert printed(matched(made(), made()), 200).count("like for like") == 4


def printed(both: SideBySide, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_side_by_side(both, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_different_clocks_and_data_are_said() -> None:
    a, b = made(), made()
    b["rows"][0]["latencies"][0]["clock"] = "device"
    b["data_fingerprint"] = "other"
    both = side_by_side(a, b)
    assert both["rows"][0]["across"] == ["clock: host | device"]
    assert both["rows"][1]["across"] == []
    assert both["scores"][0]["b_minus_a_points"] is None
    assert both["scores"][0]["across"][0].startswith("data: ")


def test_rows_of_one_name_are_matched_within_their_place_first() -> None:
    a, b = made(), made(speed=2.0)
    a["rows"] += made(tensorrt=True)["rows"][:1]
    b["rows"] = made(speed=8.0, tensorrt=True)["rows"][:1] + b["rows"]
    both = side_by_side(a, b)
    found = [(row["name"], row["a_place"], round(row["b_over_a_speed_ratio"]), row["across"]) for row in both["rows"]]
    assert found[::2] == [
        ("FP32", "ONNX Runtime, CPU", 2, []),
        ("QAT INT8", "ONNX Runtime, CPU", 2, []),
        ("FP32", "TensorRT, NVIDIA L4", 8, []),
    ]
    assert (both["only_in_a"], both["only_in_b"]) == ([], [])


def test_what_only_one_has_is_named() -> None:
    a, b = made(), made()
    del b["rows"][1], b["rows"][0]["latencies"][1]
    both = matched(a, b)
    assert (both.only_in_a, both.only_in_b) == (("QAT INT8",), ())
    row = both.to_dict()["rows"][1]
    assert row["b_median_ms"] is row["b_over_a_speed_ratio"] is None
    assert "only in A: QAT INT8" in printed(both, 120)
    assert printed(both, 120).count("not timed in B") == 1


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_number_is_cut(width: int) -> None:
    words = set(printed(matched(made(), made(speed=2.0, cpu="Xeon")), width).split())
    assert {"10.00", "5.00", "2.00x", "1x32", "86.00"} <= words


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, data in zip(paths, (made(), made(speed=2.0)), strict=True):
        path.write_text(json.dumps(data), encoding="utf-8")
    return paths


def test_command(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("benchmark", ["--compare", *map(str, files), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["rows"][0]["b_over_a_speed_ratio"] == pytest.approx(2.0)
    assert "2.00x" in out.split()


def test_page(tmp_path: Path) -> None:
    a, b = made(), made(speed=2.0, tensorrt=True)
    b["rows"][1]["latencies"].pop()
    b["rows"].append(made(tensorrt=True)["rows"][0] | {"name": "<B> alone"})
    both = matched(a, b)
    paths = write_side_by_side(tmp_path / "new", both, "l4")
    assert [path.name for path in paths] == ["l4.html", "l4.json"]
    assert json.loads(paths[1].read_text(encoding="utf-8")) == json.loads(json.dumps(both.to_dict()))
    text = paths[0].read_text(encoding="utf-8")
    page = Page(text)
    assert (page.open, page.links) == ([], [])
    place = "A: ONNX Runtime, CPU; B: TensorRT, NVIDIA L4; backend and device"
    assert [figure["figcaption"] for figure in page.figures] == [
        ["FP32, median latency", place], ["QAT INT8, median latency", place]
    ]  # fmt: skip
    assert page.figures[0]["title"] == [
        "1x32, A: 10.00 ms", "1x32, B: 5.00 ms, 2.00x", "8x32, A: 10.00 ms", "8x32, B: 5.00 ms, 2.00x"
    ]  # fmt: skip
    assert len(page.figures[1]["title"]) == 2  # 8x32 was not timed in B
    assert text.count(">not timed in B<") == 1  # the cells without a figure say so in their tooltips
    assert "only in B: &lt;B&gt; alone" in text
    assert "<h2>Scores</h2>" in text
    for report in (a, b):
        for row in report["rows"]:
            row["score_x100"] = None
    assert "<h2>Scores</h2>" not in comparison_html(matched(a, b))
    assert Page(comparison_html(matched(a | {"rows": []}, b))).figures == []


def test_command_writes_a_page_where_told(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("benchmark", ["--compare", *map(str, files), "--output_dir", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.html", "compare.json"]
    assert capsys.readouterr().out.rstrip().endswith("compare.html and compare.json")


def test_command_refuses(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, other = map(str, files)
    old = copy.deepcopy(made())
    old["schema"] = 1
    (tmp_path / "old.json").write_text(json.dumps(old))
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "rows.json").write_text(json.dumps(made() | {"rows": 3}))
    (tmp_path / "cut.json").write_text(json.dumps(made() | {"rows": [{"name": "FP32"}]}))
    untitled = {key: value for key, value in made().items() if key != "title"}
    (tmp_path / "untitled.json").write_text(json.dumps(untitled))
    for name, says in (
        ("absent.json", "absent.json does not exist; expected a benchmark.json"),
        ("old.json", "has schema 1, this q8trt reads 2; run benchmark.py again"),
        ("text.json", "is not a JSON file (not JSON: invalid character"),
        ("rows.json", "is not a benchmark report"),
        ("cut.json", "cut.json is damaged: missing key in rows[0]: precision; run benchmark.py again"),
        ("untitled.json", "untitled.json is damaged: missing key: title"),
        ("list.json", "is not a benchmark report"),
    ):
        assert run_command("benchmark", ["--compare", good, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert run_command("benchmark", ["--compare", good, other, "--warmup", "3"]) == 2
    assert "--compare reads two reports and measures nothing; drop --warmup" in capsys.readouterr().err
