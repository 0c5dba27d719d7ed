"""The summary of a build: the engine's files, the linter's forecast compared with the engine, and remarks."""

from __future__ import annotations

from pathlib import Path

from q8trt.console.commands import command
from q8trt.console.counts import plural
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, Manifest
from q8trt.engine.record import EngineRecord
from q8trt.engine.report import EngineReport
from q8trt.engine.shapes import show_profiles
from q8trt.reporting.formats import mib
from q8trt.reporting.notes import in_float_text
from q8trt.reporting.table import Cell, Column, Table, words

_TYPES = ("int8", "fp16", "fp32")


def file_lines(folder: Path, manifest: Manifest) -> list[str]:
    """Return the precision and folder of an engine, then its files with sizes, backend and profiles."""
    names = [name for name in (ONNX_FILE, PLAN_FILE) if name in manifest.files]
    onnx, *plans = (f"  {name}  {manifest.files[name].bytes / 2**20:8.1f} MiB" for name in names)
    built = manifest.backend
    target = (
        f"{built.name} {built.version}, SM {', '.join(built.sm_targets) or 'of this GPU'}" if built else "no backend"
    )
    profiles = f"batch x sequence {show_profiles(manifest.profiles)}"
    lines = [f"{plan}  {target}, {profiles}" for plan in plans] or [
        "  no plan: ONNX Runtime runs model.onnx on the CPU"
    ]
    return [f"{manifest.precision} engine: {folder}", onnx, *lines]


def remark_lines(folder: Path, manifest: Manifest) -> list[str]:
    """Return lines on a second build, operations kept in FP32, the builder's notes and the linter's findings."""
    record, lines = manifest.record, []
    if (difference := record.build.built_twice) and not difference.identical:
        lines.append(f"  built twice: {difference}")
    in_fp32 = record.export.kept_fp32
    if manifest.precision.is_half:
        lines.append(
            f"  kept in FP32 after a trial on {record.export.overflow_rows}: {plural(len(in_fp32), 'operation')}"
        )
    lines += [f"    {operation.name}: {operation.reason}" for operation in in_fp32]
    lines += [f"  note: {note}" for note in (record.engine.notes if record.engine else ())]
    if record.in_float:
        lines.append(f"  {in_float_text(record.in_float)}")
    if record.findings:
        lines.append(f"  {plural(record.findings, 'warning')} of the linter: {command('lint', folder / ONNX_FILE)}")
    return lines


def engine_table(record: EngineRecord) -> Table:
    """Return a table that compares the linter's forecast of the graph with the engine that was built."""
    forecast, engine, build = record.forecast, record.engine or EngineReport(), record.build
    ops, layers = forecast["compute_ops_by_type"], engine.layers_by_precision
    rows: list[tuple[Cell, ...]] = [
        ("GEMMs in INT8", _of(forecast["int8_gemms"], forecast["gemms"]), _of(engine.int8_gemms, engine.gemms)),
        ("attention BMMs in INT8", _of(forecast["int8_bmms"], forecast["bmms"]), _of(engine.int8_bmms, engine.bmms)),
        ("fused attentions", forecast["fusable_attentions"], engine.fused_attentions),
        (
            "residual adds in INT8",
            _of(forecast["int8_residual_adds"], forecast["residual_adds"]),
            engine.int8_residual_adds,
        ),
        (
            "in INT8, FP16, FP32",
            ", ".join(str(ops.get(each, 0)) for each in _TYPES) + " ops",
            ", ".join(str(layers.get(each.upper(), 0)) for each in _TYPES) + " layers" if layers else None,
        ),
        ("reformats", "", engine.reformats),
        ("weights", mib(forecast["int8_weight_bytes"] + forecast["float_weight_bytes"]), _mib(engine.weights_bytes)),
        ("activations", "", _mib(engine.activation_bytes)),
        ("build time", "", f"{build.seconds:.1f} s"),
        ("build memory, peak", "", None if (peak := build.peak_memory_mib) is None else f"{peak:.0f} MiB"),
    ]
    if build.built_twice:
        rows.append(("built twice", "", "the same" if build.built_twice.identical else "differs"))
    source = f"({engine.source})"
    columns = (
        words(""),
        Column("forecast", "(graph)"),
        Column("engine", source, missing="the backend does not show it"),
    )
    return Table(columns, tuple(rows))


def _of(part: int | None, whole: int | None) -> str | None:
    return None if part is None or whole is None else f"{part} of {whole}"


def _mib(size: int | None) -> str | None:
    return None if size is None else mib(size)
