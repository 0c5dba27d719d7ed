"""Reports without labels: figures against the FP32 model, in units of their own and never times 100."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from report_fixtures import FP32, INT8, make_report
from rich.console import Console

from q8trt.quantization.precision import Precision
from q8trt.reporting import Report, Row, print_report, verdict
from q8trt.reporting.benchmark_tables import scores
from q8trt.reporting.comparison import ScorePair
from q8trt.reporting.comparison_page import _score_table
from q8trt.reporting.scores import is_drift, meanings, score_text, unit_of
from q8trt.tasks.glue import task_of_head
from q8trt.tasks.heads import Embedding, Head, HeadKind
from q8trt.tasks.metrics import METRICS

EMBEDDING = {"cosine_mean": 0.99727, "cosine_p1": 0.994, "cosine_worst": 0.9846, "neighbors_10": 0.9771}
SAME = {"cosine_mean": 1.0, "cosine_p1": 1.0, "cosine_worst": 1.0, "neighbors_10": 1.0}


def scored(row: Row, metrics: dict[str, float]) -> Row:
    return replace(row, metrics=metrics, torch_metrics=metrics, fp32_metrics=dict.fromkeys(metrics, 1.0))


@pytest.fixture
def report() -> Report:
    rows = [scored(FP32, SAME), scored(INT8, EMBEDDING)]
    return replace(make_report(), main_metric="cosine_mean", rows=rows, rows_evaluated=66)


def printed(report: Report, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_report(report, console)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("metric", "value", "text", "unit"),
    [
        ("pearson", 0.8684, "86.84", "x100"),
        ("dev_mismatched.accuracy", 0.5, "50.00", "x100"),
        ("of_a_later_version", 0.5, "50.00", "x100"),
        ("neighbors_10", 0.9771, "97.7%", ""),
        ("agreement", 1.0, "100.0%", ""),
        ("cosine_mean", 0.99727, "0.9973", ""),
        ("logit_worst", 0.32881, "0.3288", ""),
    ],
)
def test_a_score_has_the_unit_of_its_metric(metric: str, value: float, text: str, unit: str) -> None:
    assert (score_text(metric, value), unit_of(metric)) == (text, unit)


def test_every_main_metric_without_labels_has_a_sentence() -> None:
    heads = [
        Head(
            kind,
            ("a", "b") if "class" in kind.value else (),
            embedding=Embedding() if kind is HeadKind.EMBEDDING else None,
        )
        for kind in HeadKind
        if kind is not HeadKind.EMBEDDING
    ]
    for head in heads:
        task = task_of_head(head, is_pair=True, has_labels=False)
        assert is_drift(task.main_metric), head
        labeled = task_of_head(head, is_pair=True, has_labels=True)
        assert not is_drift(labeled.main_metric), head
    assert is_drift("cosine_mean")
    assert not is_drift("spearman")


def test_the_verdict_speaks_of_embeddings(report: Report) -> None:
    assert verdict(report)[0].text == (
        "QAT INT8 is 1.52x as fast as FP32 at 16x128 but slower at 1x128 (0.97x); its embeddings have a mean cosine of 0.9973 "
        "to FP32's and keep 97.7% of the 10 nearest neighbors"
    )
    alone = replace(report, rows=[report.rows[0], scored(INT8, {"cosine_mean": 0.99727})])
    assert verdict(alone)[0].text.endswith("; its embeddings have a mean cosine of 0.9973 to FP32's")


def test_the_verdict_speaks_of_labels(report: Report) -> None:
    rows = [
        scored(FP32, {"agreement": 1.0, "logit_worst": 0.0}),
        scored(INT8, {"agreement": 0.991, "logit_worst": 0.3975}),
    ]
    labels = replace(report, main_metric="agreement", rows=rows)
    assert verdict(labels)[0].text.endswith("; 99.1% of its labels are those of FP32")
    assert "| 99.1% | 0.3975 |" in labels.to_markdown()
    assert "39.75" not in labels.to_markdown()


def test_without_a_baseline_the_distance_is_still_stated(report: Report) -> None:
    alone = replace(report, rows=[scored(INT8, {"cosine_mean": 0.99727})])
    assert verdict(alone)[0].text.endswith("to compare with; its embeddings have a mean cosine of 0.9973 to FP32's")


def test_neighbors_are_beside_the_cosine(report: Report) -> None:
    markdown, text = report.to_markdown(), printed(report)
    for page in (markdown, text):
        assert "0.9973" in page
        assert "97.7%" in page
        assert "99.73" not in page
        assert "torch FP32 scored" not in page
    assert "cosine_mean | neighbors_10 | ONNX MiB" in markdown  # no column vs FP32
    assert "cosine_mean x100" not in report.to_html()


def test_few_texts_behind_neighbors_have_a_note(report: Report) -> None:
    assert any("on only 66 texts" in note for note in report.all_notes)
    assert not any("neighbors_10 was" in note for note in replace(report, rows_evaluated=500).all_notes)
    assert not any("neighbors_10 was" in note for note in make_report().all_notes)


def test_torchs_scores_are_those_that_torch_computed(report: Report) -> None:
    """An FP16 engine has FP32's record, and without labels FP32 is compared with itself."""
    half = replace(report.rows[0], name="FP16", precision=Precision.FP16)
    rows = scores(replace(report, rows=[report.rows[0], half, report.rows[1]])).texts()
    assert [row[-1] for row in rows] == ["-", "-", "97.7%"]
    legend = scores(report).legend
    assert legend.startswith("cosine_p1, cosine_worst: 1st percentile and minimum of the cosines")
    assert legend.endswith("; columns of torch: the checkpoint before the export.")
    assert "logit_mean, logit_p99, logit_worst: mean, 99th percentile and maximum" in meanings(
        ["agreement", "logit_p99"]
    )
    assert meanings(["pearson", "agreement"]) == ""
    labeled = make_report()
    half = replace(labeled.rows[0], name="FP16", precision=Precision.FP16)
    rows = scores(replace(labeled, rows=[labeled.rows[0], half, labeled.rows[1]])).texts()
    assert [row[4] for row in rows] == ["86.86", "-", "87.49"]


def test_scales_are_known_for_every_metric() -> None:
    assert {name for name in METRICS if unit_of(name) == "x100"} >= {"accuracy", "pearson", "span_f1", "f1_micro"}
    assert {name for name in METRICS if name.startswith(("logit_", "cosine_")) and unit_of(name)} == set()


def test_a_comparison_has_the_units_of_the_metric() -> None:
    pairs = [ScorePair("INT8", "cosine_mean", 99.727, 99.83, ())]
    assert _score_table(pairs).texts() == [["INT8", "0.9973", "0.9983", "+0.0010", "the same rows"]]
    pairs = [ScorePair("INT8", "pearson", 86.84, 87.19, ())]
    assert _score_table(pairs).texts() == [["INT8", "86.84", "87.19", "+0.35 points", "the same rows"]]
