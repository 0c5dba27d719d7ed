"""The model card of an archive, ``MODEL_CARD.md``, which describes the engine.

Its facts come from the manifest, the run and the benchmark beside the engine, so the same folder gives the same card.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from q8trt.console.names import markdown_code, markdown_text
from q8trt.engine.manifest import SAMPLE_LABEL, Manifest
from q8trt.errors import DataError, Q8TRTError
from q8trt.models import resolve_model
from q8trt.reporting.markdown import Markdown, markdown_table
from q8trt.reporting.scores import score_text, with_unit
from q8trt.reporting.stored import StoredOrigin, StoredRow, read_report
from q8trt.reporting.table import Table, words
from q8trt.runs.run import RUN_FILE, Run
from q8trt.tasks.heads import HeadKind

BENCHMARK_FILE = "benchmark.json"
NOT_STATED = "not stated"
_STAGES = {"fp32": "fine-tuned", "ptq": "calibrated", "int8": "trained with quantization in the loop"}


def make_card(folder: Path, manifest: Manifest, license: str | None = None) -> str:
    """Return the card of an engine folder, in Markdown. Its run and ``benchmark.json`` are read from the parent folder.

    `license` is the license of the base model; None for the result of `base_license`.
    """
    license = license or base_license(folder) or NOT_STATED
    row, origin = measured(folder, manifest)
    sections = [
        _head(manifest, license),
        "## What it answers\n\n" + _answers(manifest),
        "## Scores\n\n" + _scores(manifest, row),
        "## Latency\n\n" + _latency(row, origin),
        "## How it was made\n\n" + _table(("", ""), _origin(manifest)),
        "## Files\n\n" + _table(("file", "bytes", "SHA-256"), _files(manifest)),
        f"## License\n\nOf the base model {markdown_code(manifest.model.name)}: {markdown_text(license)}.",
    ]
    return "\n\n".join(sections) + "\n"


def base_license(folder: Path) -> str | None:
    """Return the license in the base model's card; None if the engine is in no run, or the card or its license is missing."""
    run = Run(folder.absolute().parent)
    if not (run.path / RUN_FILE).is_file():
        return None
    try:
        record = run.record
        places = [run.path / stage.checkpoint for stage in record.stages.values()]
        for name in (record.config.get("from_fp32"), record.config.get("model_name_or_path")):
            places += [Path(resolve_model(name))] if isinstance(name, str) and name else []
    except (Q8TRTError, OSError, ValueError):
        return None
    return next((license for place in places if (license := _stated(place / "README.md"))), None)


def _stated(card: Path) -> str | None:
    """Return ``license`` in the front matter of a Hugging Face model card, or None."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, flags=re.DOTALL)
    line = re.search(r"^license:[ \t]*(\S[^\r\n]*)", front[1], flags=re.MULTILINE) if front else None
    return line[1].strip().strip("\"'") if line else None


def measured(folder: Path, manifest: Manifest) -> tuple[StoredRow | None, StoredOrigin | None]:
    """Return the engine's row in the ``benchmark.json`` beside the folder, and the provenance of that report.

    Both are None if the report is missing, damaged or older than the engine, or has no such row.
    """
    folder = folder.absolute()
    try:
        report = read_report(folder.parent / BENCHMARK_FILE)
    except (DataError, OSError):
        return None, None
    if (report.provenance.date_utc or "") < manifest.created:
        return None, None
    names = (folder.name, manifest.precision)
    rows = [row for row in report.rows if (Path(row.folder).name, row.precision) == names]
    return (rows[0], report.provenance) if rows else (None, None)


def _head(manifest: Manifest, license: str) -> str:
    embeds = manifest.head.embedding is not None
    kind = "sentence-similarity" if embeds else "regression" if manifest.task.is_regression else "text-classification"
    precision = manifest.precision.label
    sample = f" ({SAMPLE_LABEL})" if manifest.record.is_sample else ""
    # Hugging Face accepts only its identifiers of licenses.
    front = f"license: {license}\n" if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license) else ""
    return (
        f"---\n{front}tags: [q8trt, tensorrt, {kind}]\n---\n\n"
        f"# {markdown_text(manifest.model.name)} on {markdown_text(manifest.task.name)}{sample}, {precision}\n\n"
        f"An engine folder of q8trt: {precision}, {_STAGES.get(manifest.stage, 'of an unnamed stage')}.\n\n"
        "    q8trt unpack FILE.q8trt --output_dir engine\n\n"
        "    from q8trt import Engine\n"
        '    engine = Engine.load("engine")\n'
        f"    engine.{'embed' if embeds else 'predict'}([{_example(manifest)}])"
    )


def _example(manifest: Manifest) -> str:
    first = '"A plane is taking off."'
    return f'({first}, "An air plane is taking off.")' if manifest.task.is_pair else first


def _answers(manifest: Manifest) -> str:
    task, model = manifest.task, manifest.model
    takes = "two texts" if task.is_pair else "one text"
    embedding, sets = manifest.head.embedding, manifest.head.kind is HeadKind.MULTI_LABEL_CLASSIFICATION
    gives = (
        f"{embedding.dimension} numbers"
        if embedding
        else "one number"
        if task.is_regression
        else f"{'any' if sets else 'one'} of the labels {', '.join(map(markdown_code, task.labels))}"
    )
    return (
        f"Task {markdown_text(task.name)}: {takes} in, {gives} out. Text beyond {model.max_seq_length} tokens is cut."
    )


def _scores(manifest: Manifest, row: StoredRow | None) -> str:
    """Return a table of the metrics in the manifest and in the benchmark, each with its source."""
    lines = [
        (f"torch, {name.removeprefix('torch_')} checkpoint" if name.startswith("torch_") else name, metric, value)
        for name, scores in manifest.metrics.items()
        for metric, value in _flat(scores)
    ]
    lines += [(row.label, metric, value) for metric, value in _flat(row.metrics)] if row else []
    if not lines:
        return "None recorded."
    sample = f"Of q8trt's sentence pairs ({SAMPLE_LABEL}). " if manifest.record.is_sample else ""
    main = f"{sample}The task's main metric is {markdown_text(manifest.task.main_metric)}.\n\n"
    cells = [(markdown_text(by), markdown_text(with_unit(name)), score_text(name, value)) for by, name, value in lines]
    return main + _table(("computed by", "metric", "score"), cells)


def _flat(scores: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield each number in nested dicts with its path, such as ("dev.pearson", 0.87)."""
    for name, value in scores.items() if isinstance(scores, dict) else ():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def _latency(row: StoredRow | None, origin: StoredOrigin | None) -> str:
    if row is None or origin is None or not row.latencies:
        return f"Not measured: no `{BENCHMARK_FILE}` of this engine was beside it when it was packed."
    hardware = f"{origin.hardware.get('cpu')}, {origin.hardware.get('cores')} cores"
    where = f"{row.label}; {hardware}; {origin.date_utc}; commit {str(origin.git_commit)[:12]}."
    columns = ("batch x sequence", "median ms", "p99 ms", "samples/s")
    cells = [
        (f"{each.batch}x{each.sequence}", f"{each.median_ms:.2f}", f"{each.p99_ms:.2f}", f"{each.samples_per_s:.0f}")
        for each in row.latencies
    ]
    return f"{markdown_text(where)}\n\n{_table(columns, cells)}"


def _origin(manifest: Manifest) -> list[tuple[str, str]]:
    backend, model = manifest.backend, manifest.model
    rows = [
        ("base model", markdown_text(f"{model.name} ({model.model_type})")),
        ("recipe", _recipe(manifest.recipe)),
        ("precision", manifest.precision),
        ("ONNX opset", str(manifest.opset)),
        ("q8trt", markdown_text(manifest.q8trt_version)),
        ("created", markdown_text(manifest.created)),
    ]
    if backend:
        plan = f"{backend.name} {backend.version}, SM {', '.join(backend.sm_targets)}"
        rows.insert(3, ("plan", markdown_text(plan)))
        rows.insert(4, ("batch x sequence", "; ".join(str(profile) for profile in manifest.profiles)))
    return rows


def _recipe(recipe: dict[str, Any] | None) -> str:
    if not recipe:
        return "none"
    description = str(recipe.get("description") or "")
    name = markdown_code(str(recipe.get("name", "unnamed")))
    return f"{name}: {markdown_text(description)}" if description else name


def _files(manifest: Manifest) -> Iterable[tuple[str, ...]]:
    return [
        (markdown_code(name), f"{info.bytes:,}", f"`{info.sha256}`") for name, info in sorted(manifest.files.items())
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = tuple(tuple(map(Markdown, row)) for row in rows)
    return "\n".join(markdown_table(Table(tuple(map(words, columns)), cells))).rstrip()
