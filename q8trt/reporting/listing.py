"""The facts of runs and engine folders, read only from run.json and manifests, and tables of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from q8trt.console.names import one_line
from q8trt.engine.folder import EngineFolder, engine_folders
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, Manifest
from q8trt.engine.manifest_file import load_manifest
from q8trt.errors import Q8TRTError
from q8trt.reporting.scores import score_text, with_unit
from q8trt.reporting.stored import StoredReport, read_report
from q8trt.reporting.table import Column, Table, words
from q8trt.runs.config import config_of_run, last_stage, model_name
from q8trt.runs.run import STAGES, Run, find_runs


@dataclass(frozen=True)
class EngineEntry:
    """An engine folder in a list.

    Attributes:
        name: of the folder.
        label: how the model was made and its precision, such as "QAT INT8+FP16".
        precision: a value of `Precision`.
        bytes: size of the plan, or of the ONNX file if there is no plan; 0 if there is neither.
        has_plan: whether there is a plan.
        backend: builder of the plan, with its version; "" without a plan.
        score: the task's main metric in the run's benchmark.json, as a fraction; None without a score of this build.
        problem: why the folder cannot be read; all other fields but `name` are then empty. "" if it can be read.
    """

    name: str
    label: str = ""
    precision: str = ""
    bytes: int = 0
    has_plan: bool = False
    backend: str = ""
    score: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class RunEntry:
    """A run in a list.

    Attributes:
        name: of the folder.
        folder: the path.
        created: ISO 8601, UTC; "" if unknown.
        model: name of the model that the run began with.
        task: task of the data; the kind of the head if a model was quantized without a task.
        recipe: name of the quantization recipe; "" for a run that ends with FP32.
        target: the device that engines are made for.
        state: "finished", or "unfinished" while the last stage, or the report of `q8trt quantize` on its engines, is missing.
        main_metric: name of the metric of `scores`.
        scores: finished stage -> main metric on the first split that has it, as a fraction; None if it was not measured.
        engines: in the order of their names.
        problem: why run.json cannot be read; all other fields but `name` and `folder` are then empty. "" if it can be read.
    """

    name: str
    folder: str
    created: str = ""
    model: str = ""
    task: str = ""
    recipe: str = ""
    target: str = ""
    state: str = ""
    main_metric: str = ""
    scores: dict[str, float | None] = dataclasses.field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()
    problem: str = ""


def list_runs(root: str | Path) -> tuple[RunEntry, ...]:
    """Return the runs directly in `root`, the one written last first; a run that cannot be read has a problem."""
    return tuple(run_entry(run) for run in find_runs(root))


def run_entry(run: Run) -> RunEntry:
    """Return the facts of a run, with a problem if run.json cannot be read."""
    name, folder = run.path.name if run.path.name not in ("", "..") else run.path.resolve().name, str(run.path)
    try:
        record, config = run.record, config_of_run(run)
    except Q8TRTError as error:
        return RunEntry(name, folder, problem=str(error))
    task, report = config.data.resolved_task, _benchmark(run)
    return RunEntry(
        name,
        folder,
        record.created,
        model_name(config),
        task.name,
        config.recipe.name if config.precision.is_quantized else "",
        config.target.value,
        "finished" if last_stage(config) in record.stages and not run.lacks_engines else "unfinished",
        task.main_metric,
        {name: first_score(stage.scores, task.main_metric) for name, stage in record.stages.items()},
        tuple(engine_entry(each, report) for each in sorted(engine_folders(run.path))),
    )


def _benchmark(run: Run) -> StoredReport | None:
    """Return the report that `benchmark.py` wrote into the run; None if it is missing or damaged."""
    try:
        return read_report(run.path / "benchmark.json")
    except Q8TRTError:
        return None


def engine_entry(folder: Path, report: StoredReport | None) -> EngineEntry:
    """Return the facts of an engine folder from its manifest, with a problem if that cannot be read.

    Args:
        folder: the engine.
        report: the benchmark of its run, for the score.
    """
    try:
        manifest = load_manifest(folder, verify=False)
    except Q8TRTError as error:
        return EngineEntry(folder.name, problem=str(error))
    built, model = manifest.backend, PLAN_FILE if PLAN_FILE in manifest.files else ONNX_FILE
    return EngineEntry(
        folder.name,
        EngineFolder(folder, manifest).name,
        manifest.precision.value,
        manifest.files[model].bytes if model in manifest.files else 0,
        model == PLAN_FILE,
        f"{built.name} {built.version}" if built else "",
        _measured(folder.name, manifest, report),
    )


def _measured(name: str, manifest: Manifest, report: StoredReport | None) -> float | None:
    """Return the score of an engine in `report`; None if it is older than the engine or has no score of it."""
    if report is None or (report.provenance.date_utc or "") < manifest.created:
        return None
    scores = (row.score_x100 for row in report.rows if Path(row.folder).name == name)
    return next((score / 100 for score in scores if score is not None), None)


def first_score(scores: Mapping[str, Any], metric: str) -> float | None:
    """Return `metric` of the first split that has it; None if none has."""
    values = [split[metric] for split in scores.values() if isinstance(split, dict) and metric in split]
    return next((float(value) for value in values if isinstance(value, int | float)), None)


def runs_tables(runs: Sequence[RunEntry]) -> tuple[Table, Table]:
    """Return a row for each run, with its metric and scores: a wide table, and one for a narrow terminal.

    In the narrow one, task, model and state are below the name, and columns that matter less may be left out.
    """
    stages = tuple(Column(stage.upper(), missing="not finished, or not scored") for stage in STAGES)
    scores = [tuple(_score(run, run.scores.get(stage)) for stage in STAGES) for run in runs]
    facts = [(run.recipe or None, run.target, with_unit(run.main_metric)) for run in runs]
    names = tuple(map(_names, ("run", "model", "task", "state", "recipe", "target", "metric")))
    wide = [(run.name, run.model, run.task, run.state, *each) for run, each in zip(runs, facts, strict=True)]
    below = [_stacked(run.name, ", ".join((run.task, run.model, run.state))) for run in runs]
    ranked = (words("run"), _names("recipe", 2), _names("target", 3), _names("metric"))
    narrow = [(name, *each) for name, each in zip(below, facts, strict=True)]
    return _joined((*names, *stages), wide, scores), _joined((*ranked, *stages), narrow, scores)


def _score(run: RunEntry, value: float | None) -> str | None:
    return None if value is None else score_text(run.main_metric, value)


def _joined(columns: tuple[Column, ...], left: Sequence[tuple[Any, ...]], right: Sequence[tuple[Any, ...]]) -> Table:
    return Table(columns, tuple((*first, *second) for first, second in zip(left, right, strict=True)))


def _stacked(*lines: str) -> str:
    """Return the lines of a cell, indented from the second on. Names may come from a foreign file, so they are escaped."""
    return "\n  ".join(map(one_line, lines))


def _names(heading: str, rank: int = 0) -> Column:
    """Return a column of names, which are escaped because they may come from a foreign file."""
    return replace(words(heading), format=one_line, rank=rank)


def engines_tables(runs: Iterable[RunEntry]) -> tuple[Table, Table]:
    """Return a row for each engine that can be read, in the order of the runs: a wide and a narrow table."""
    pairs = [(run, each) for run in runs for each in run.engines if not each.problem]
    size, score = Column("size", "MiB", format=lambda size: f"{size / 2**20:.1f}"), Column("score")
    facts = [
        (
            each.label, each.bytes, PLAN_FILE if each.has_plan else ONNX_FILE, each.backend or None,
            None if each.score is None else with_unit(run.main_metric), _score(run, each.score),
        )
        for run, each in pairs
    ]  # fmt: skip
    wide = [(f"{run.name}/{each.name}",) for run, each in pairs]
    below = [(_stacked(f"{run.name}/", each.name),) for run, each in pairs]
    columns = (_names("model"), size, _names("file", 3), _names("backend", 2), _names("metric", 1), score)
    return (
        _joined((_names("engine"), *(replace(each, rank=0) for each in columns)), wide, facts),
        _joined((words("engine"), *columns), below, facts),
    )


def problem_lines(runs: Iterable[RunEntry]) -> list[str]:
    """Return a line for each run and engine that cannot be read."""
    problems = [
        problem for run in runs for problem in (run.problem, *(each.problem for each in run.engines)) if problem
    ]
    return [one_line(f"damaged: {problem}") for problem in problems]


def runs_dict(root: str | Path, runs: Sequence[RunEntry]) -> dict[str, Any]:
    """Return the facts ready for JSON."""
    return {"runs_dir": str(root), "runs": [dataclasses.asdict(run) for run in runs]}
