"""The tables of a benchmark report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from q8trt.engine.manifest import SAMPLE_LABEL
from q8trt.quantization.precision import Precision
from q8trt.reporting.formats import ms, percent, rate, switch, times, tops
from q8trt.reporting.measurements import Measurements, Row
from q8trt.reporting.scores import beside, meanings, score_text, shown_difference, unit_of
from q8trt.reporting.table import DASH, PLACE, Cell, Column, Table, words
from q8trt.runtime.timing.latency import PARTS, Latency
from q8trt.runtime.timing.lengths import Lengths
from q8trt.tasks.metrics import direction

SPEED_LEGEND = "speed: FP32's median time over this row's, same backend and device; above 1 is faster than FP32"
LENGTHS_LEGEND = (
    "samples/s: rows over host wall time, batches of both kinds taking turns; vs fixed length: samples/s with buckets over "
    "those of the same row at the fixed length"
)
#: With more shapes than this, a document shows times only in the latency table.
SUMMARY_SHAPES = 4
_NO_FP32_SCORE = "not scored, or no scored FP32 row on the same backend and device"
_NO_FP32_TIME = "not timed, no FP32 row timed on the same backend and device, or FP16 computed in FP32"
_ROW = (words(""), words(PLACE, wraps=True))
_SHAPE = Column("batch x\nsequence")


def summary(report: Measurements, with_times: bool = True) -> Table:
    """Return a line per row: score, difference to FP32's score, sizes and, `with_times`, median and speed at each shape."""
    shapes = report.shapes if with_times else []
    return _summary(report, _ROW, "", shapes, SPEED_LEGEND if shapes else "")


def document_summary(report: Measurements) -> Table:
    """Return `summary` for a document, which has room for the name of the sample and the precision."""
    sample = f"({SAMPLE_LABEL})" if report.is_sample else ""
    shapes = report.shapes if len(report.shapes) <= SUMMARY_SHAPES else []
    legend = f"{SPEED_LEGEND}; {DASH}: not measured, or nothing comparable." if shapes else ""
    return _summary(report, (*_ROW, words("precision")), sample, shapes, legend)


def _summary(report: Measurements, names: tuple[Column, ...], sample: str, shapes: Sequence[str], legend: str) -> Table:
    main, other = report.main_metric, beside(report.main_metric)
    columns = [_score_column(main, "", sample), *([_score_column(other)] if other else [])]
    if not report.is_drift:  # a drift already compares with FP32
        columns.append(Column("vs", "FP32", format="+.2f", missing=_NO_FP32_SCORE))
    columns += [
        Column("ONNX", "MiB", format=".1f", missing="no ONNX file"),
        Column("plan", "MiB", format=".1f", missing="no plan"),
    ]
    for shape in shapes:
        columns += [Column(shape, "ms", format=ms), Column(shape, "speed", format=times, missing=_NO_FP32_TIME)]

    def cells(row: Row) -> list[Cell]:
        figures: list[Cell] = [row.metrics.get(name) for name in (main, other) if name]
        figures += [] if report.is_drift else [_difference(report, row)]
        figures += [row.onnx_mib, row.plan_mib]
        return figures + [cell for shape in shapes for cell in (row.median_ms(shape), report.speed(row, shape))]

    rows = tuple((*(row.name, row.runs_on, row.precision)[: len(names)], *cells(row)) for row in report.rows)
    lower = f"{main}: lower is better" if direction(main) < 0 else ""
    return Table((*names, *columns), rows, "; ".join(part for part in (lower, legend) if part))


def _difference(report: Measurements, row: Row) -> float | None:
    """Return the difference (x100) of the scores that the table shows of a row and of its baseline; None if one is missing."""
    baseline = report.baseline(row)
    score, base = report.score_x100(row), report.score_x100(baseline) if baseline else None
    return None if score is None or base is None else shown_difference(report.main_metric, score, base)


def _score_column(metric: str, prefix: str = "", sample: str = "", missing: str = "not scored") -> Column:
    """Return the column of a metric, with its unit."""
    unit = " ".join(filter(None, (unit_of(metric), sample)))
    return Column(f"{prefix}{metric}", unit, format=partial(score_text, metric), missing=missing)


def engines(report: Measurements) -> Table:
    """Return the model, recipe and folder of each row; an empty table if all rows share one model, recipe and run."""
    columns = (*_ROW, words("model", wraps=True), words("recipe", wraps=True), words("engine folder", wraps=True))
    rows = [(row.name, row.runs_on, row.model, row.recipe or "none", row.folder) for row in report.rows]
    head = report.head
    is_needed = max(len(head.models), len(head.recipes), len(head.runs)) > 1
    return Table(columns, tuple(rows) if is_needed else (), title="Engines")


def scores(report: Measurements) -> Table:
    """Return every metric of each row and of the torch model that the row was exported from."""
    names = list(dict.fromkeys(name for row in report.rows for name in row.metrics))
    columns = [_score_column(name) for name in names]
    torch = any(_torch_scores(report, row) for row in report.rows)
    columns += [_score_column(name, "torch ", missing="not recorded, or not computed") for name in names if torch]
    rows = []
    for row in report.rows:
        recorded = _torch_scores(report, row)
        figures = [row.metrics.get(name) for name in names] + [recorded.get(name) for name in names if torch]
        rows.append((row.name, row.runs_on, *figures))
    title = f"Scores, {SAMPLE_LABEL}" if report.is_sample else "Scores"
    of_torch = "columns of torch: the checkpoint before the export" if torch else ""
    legend = "; ".join(filter(None, (meanings(names), of_torch)))
    return Table((*_ROW, *columns), tuple(rows) if names else (), f"{legend}." if legend else "", title)


def _torch_scores(report: Measurements, row: Row) -> Mapping[str, float]:
    """Return the scores of a row's checkpoint in torch; {} for FP16, which torch did not compute.

    Without labels, FP32 has none either, because it would be compared with itself.
    """
    is_left_out = row.precision == Precision.FP16 or (report.is_drift and not row.precision.is_quantized)
    return {} if is_left_out else row.torch_metrics or {}


#: Statistics of one row at one shape, in the order of the table.
_STATISTICS: tuple[tuple[Column, Callable[[Latency], Cell]], ...] = (
    (Column("median", "ms", format=ms), lambda each: each.median_ms),
    (Column("mean", "ms", format=ms, rank=3), lambda each: each.mean_ms),
    (Column("p90", "ms", format=ms, rank=3), lambda each: each.p90_ms),
    (Column("p95", "ms", format=ms, rank=2), lambda each: each.p95_ms),
    (Column("p99", "ms", format=ms), lambda each: each.p99_ms),
    (Column("queries", "/s", format=rate, rank=2), lambda each: each.queries_per_s),
    (Column("samples", "/s", format=rate, rank=1), lambda each: each.samples_per_s),
)
#: Statistics that only rows on a GPU have, because a CPU's say nothing about TensorRT.
_ARITHMETIC: tuple[tuple[Column, Callable[[Latency], Cell]], ...] = (
    (
        Column("GEMM", "TOPS", format=tops, missing="the model's work is not known, or the row ran on a CPU", rank=1),
        lambda each: each.gemm_tops,
    ),
    (
        Column("of", "peak", format=percent, missing="the peak is not known, or the row ran on a CPU", rank=1),
        lambda each: each.peak_share,
    ),
)


def latencies(report: Measurements) -> Table:
    """Return a line per row and shape: percentiles, throughput and, on a GPU, TOPS and the share of the peak."""
    arithmetic = _ARITHMETIC if any(row.device != "cpu" for row in report.rows) else ()
    columns = (
        *_ROW, _SHAPE, *(column for column, _ in (*_STATISTICS, *arithmetic)),
        Column("speed", format=times, missing=_NO_FP32_TIME), Column("iterations", format="d", rank=4),
    )  # fmt: skip

    def cells(row: Row, each: Latency) -> list[Cell]:
        figures = [statistic(each) for _, statistic in _STATISTICS]
        return figures + [None if row.device == "cpu" else statistic(each) for _, statistic in arithmetic]

    rows = [
        (row.name, row.runs_on, each.shape, *cells(row, each), report.speed(row, each.shape), each.iterations)
        for row in report.rows
        for each in row.latencies
    ]
    return Table(columns, tuple(rows), f"Times are the {report.what_is_timed}.", "Latency and throughput")


_PART_TITLES = {"h2d": "H2D", "gpu": "GPU", "d2h": "D2H", "enqueue": "enqueue", "host": "host wall"}


def parts(report: Measurements) -> Table:
    """Return the medians of the parts of a query, for rows whose runner times them."""
    columns = [Column(_PART_TITLES[part], "ms", format=".3f", rank=part == "host") for part in PARTS]
    columns += [
        Column("CUDA", "graph", format=switch, missing="the backend does not report it"),
        Column("copies", "timed", format=switch, missing="the backend does not report it", rank=1),
    ]
    rows = [
        (
            row.name, row.runs_on, each.shape, *(each.parts[part].median_ms for part in PARTS), each.cuda_graph,
            each.transfers,
        )
        for row in report.rows
        for each in row.latencies
        if each.parts
    ]  # fmt: skip
    return Table((*_ROW, _SHAPE, *columns), tuple(rows), title="Parts of a query, medians")


def lengths(report: Measurements) -> Table:
    """Return the throughput on the scored rows with length buckets and without."""
    columns = (
        *_ROW, Column("rows", format="d"), Column("batch", "size", format="d", rank=1),
        Column("tokens", "a row", format=".1f", rank=1), Column("length buckets", "samples/s", format=rate),
        Column("fixed length", "samples/s", format=rate), Column("vs fixed", "length", format=times),
    )  # fmt: skip
    measured = [(row, row.lengths) for row in report.rows if row.lengths]
    rows = [
        (
            row.name, row.runs_on, each.rows, each.batch_size, each.mean_tokens, each.bucket_samples_per_s,
            each.fixed_samples_per_s, each.ratio,
        )
        for row, each in measured
    ]  # fmt: skip
    title = ""
    if measured:
        title = _lengths_title(measured[0][1], report)
    return Table(columns, tuple(rows), f"{LENGTHS_LEGEND}.", title)


def _lengths_title(measured: Lengths, report: Measurements) -> str:
    """Return the title: the lengths that are compared, the padding at the fixed length, and the rows that were run."""
    unit, total = "rows" if report.questions_evaluated is None else "windows", report.rows_evaluated
    share = f"all {unit}"
    if measured.rows != total:
        share = f"{measured.rows} of {total} {unit}, in evenly spaced batches, to keep to --max_seconds"
    padding = percent(1 - measured.mean_tokens / measured.fixed)
    buckets = ", ".join(map(str, measured.buckets))
    return f"Length buckets {buckets} against fixed {measured.fixed} ({padding} padding), {share}"


def detail_tables(report: Measurements) -> Sequence[Table]:
    """Return the tables below the summary, without empty ones."""
    tables = (engines(report), scores(report), latencies(report), parts(report), lengths(report))
    return [table for table in tables if table.rows]
