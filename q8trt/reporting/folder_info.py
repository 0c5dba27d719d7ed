"""The facts of one folder: a run, a checkpoint of a run, or an engine folder. No file is hashed and no model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from q8trt.console.counts import plural
from q8trt.console.names import one_line
from q8trt.console.options import options_of
from q8trt.engine.manifest import MANIFEST_FILE, SAMPLE_LABEL, Manifest
from q8trt.engine.manifest_file import load_manifest
from q8trt.engine.shapes import show_profiles
from q8trt.errors import ConfigError, Q8TRTError
from q8trt.quantization.precision import Precision
from q8trt.reporting.formats import mib, switch
from q8trt.reporting.listing import RunEntry, run_entry
from q8trt.reporting.scores import score_text
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.runs.run import RUN_FILE, Run, RunRecord, StageRecord

#: Fields of a configuration of data that name the source of the rows.
_SOURCES = ("data_dir", "train_file", "validation_file", "texts")
#: Bytes of the smallest entry that is shown: 0.1 MiB.
_LEAST = 2**20 // 10


@dataclass(frozen=True)
class DataInfo:
    """The rows of a run.

    Attributes:
        source: description of the source of rows that are not in the user's files; otherwise "".
        files: option -> file or folder.
        rows: split -> number of rows; {} if not recorded.
        columns: description of the text and label columns; "" if the source has none.
        max_seq_length: the most tokens in a row.
    """

    source: str
    files: dict[str, str]
    rows: dict[str, int]
    columns: str
    max_seq_length: int


@dataclass(frozen=True)
class RunInfo:
    """The facts of a run, and of one of its checkpoints.

    Attributes:
        entry: the facts of the run that a list shows.
        kind: "run" or "checkpoint".
        folder: the run or the checkpoint.
        head: kind of the model's head, if it was read from the model; otherwise "".
        precision: of the run; FP32 for a run that does not quantize.
        quantizer: library of the quantizers.
        data: the rows.
        options: options of the training that are not at their default, as words of a command line.
        settings: name of q8trt's settings that were applied; "" for none.
        scores: stage -> split -> metric -> value; for a checkpoint, only those of its stage.
        details: of the checkpoint's stage, such as steps and seconds; {} for a run.
        command: the command line that made the run; "" if not recorded.
        commit: of q8trt's source; "" if not recorded.
        versions: package -> version; {} if not recorded.
        sizes: name in the folder -> bytes, without hidden entries.
    """

    entry: RunEntry
    kind: Literal["run", "checkpoint"]
    folder: str
    head: str
    precision: Precision
    quantizer: str
    data: DataInfo
    options: tuple[str, ...]
    settings: str
    scores: dict[str, Any]
    details: dict[str, Any]
    command: str
    commit: str
    versions: dict[str, Any]
    sizes: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts ready for JSON."""
        facts = dataclasses.asdict(self)
        entry = facts.pop("entry")
        entry |= {"run": entry.pop("folder")}
        return {"kind": self.kind, "folder": self.folder, **entry, **facts}


@dataclass(frozen=True)
class EngineInfo:
    """The facts of an engine folder.

    Attributes:
        folder: its path.
        manifest: its manifest.
        run: the run that contains it; None for an engine outside a run.
        command: the command line that made the run; "" if unknown.
        commit: of q8trt's source when the run was made; "" if unknown.
        sizes: file -> bytes, as the manifest lists them.
    """

    folder: str
    manifest: Manifest
    run: RunEntry | None
    command: str = ""
    commit: str = ""
    sizes: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts ready for JSON: those of the run and of the manifest, without hashes, recipe content and report."""
        facts = dataclasses.asdict(self.manifest)
        left_out = ("files", "digest", "recipe", "format", "report")
        return {
            "kind": "engine",
            "folder": self.folder,
            "run": self.run.folder if self.run else None,
            "target": self.run.target if self.run else None,
            "recipe": self.manifest.recipe_name,
            "fuse_qkv": self.manifest.record.export.options.fuse_qkv,
            "findings": self.manifest.record.findings,
            **{name: value for name, value in facts.items() if name not in left_out},
            "command": self.command,
            "commit": self.commit,
            "sizes": self.sizes,
        }


def read_info(path: str | Path) -> RunInfo | EngineInfo:
    """Return the facts of a folder.

    Raises:
        ConfigError: the folder is missing, is not a run, checkpoint of a run or engine folder, or its run.json is damaged.
        EngineError: the manifest is damaged.
    """
    folder = Path(path)
    if (folder / MANIFEST_FILE).is_file():
        return _engine_info(folder)
    if (folder / RUN_FILE).is_file():
        return _run_info(folder, Run(folder), None)
    if folder.is_dir() and (_parent(folder) / RUN_FILE).is_file():
        run = Run(_parent(folder))
        for name, stage in run.record.stages.items():
            if (run.path / stage.checkpoint).resolve() == folder.resolve():
                return _run_info(folder, run, name)
    problem = "is not a folder" if folder.exists() and not folder.is_dir() else "does not exist"
    if folder.is_dir():
        problem = f"has no {RUN_FILE} and no {MANIFEST_FILE}, and is not a finished stage of a run"
    raise ConfigError(
        f"{folder} {problem}; expected a run (runs/NAME), a checkpoint of a run (runs/NAME/int8) or an engine folder "
        "(runs/NAME/engine); q8trt runs lists them"
    )


def _parent(folder: Path) -> Path:
    """Return the parent folder, relative if `folder` is."""
    return folder.parent if folder.name not in ("", "..") else folder.resolve().parent


def _run_info(folder: Path, run: Run, stage: str | None) -> RunInfo:
    record, config = run.record, config_of_run(run)
    stages = {name: each for name, each in record.stages.items() if stage in (None, name)}
    origin = record.provenance
    return RunInfo(
        entry=run_entry(run),
        kind="run" if stage is None else "checkpoint",
        folder=str(folder),
        head=config.data.head.kind.value if config.data.head else "",
        precision=config.precision,
        quantizer=config.quantizer,
        data=_data_info(record, config),
        options=tuple(options_of(config.training)),
        settings=config.settings or "",
        scores={name: each.scores for name, each in stages.items()},
        details={} if stage is None else _details(stages),
        command=str(origin.get("command") or ""),
        commit=str(origin.get("git_commit") or ""),
        versions=versions if isinstance(versions := origin.get("versions"), dict) else {},
        sizes=_sizes(folder),
    )


def _details(stages: Mapping[Any, StageRecord]) -> dict[str, Any]:
    return next((stage.details for stage in stages.values()), {})


def _data_info(record: RunRecord, config: FinetuneConfig) -> DataInfo:
    data: Any = config.data  # the run's, with the record of its rows
    files = {name: str(path) for name in _SOURCES if (path := getattr(data, name))}
    splits = data.record.splits if data.record else {}
    rows = {name: split.rows for name, split in splits.items()}
    source = (
        "" if files else SAMPLE_LABEL if data.sample else "built-in sentences" if data.head else "GLUE from the hub"
    )
    return DataInfo(source, files, rows, data.record.columns_line() if data.record else "", data.max_seq_length)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each entry of `folder` except hidden ones; a subfolder has the bytes of all its files."""
    entries = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return {path.name: sum(map(_bytes, (path, *path.rglob("*")))) for path in entries}


def _bytes(path: Path) -> int:
    """Return the size of a file; 0 for a folder, and for a file that a training run removed meanwhile."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _engine_info(folder: Path) -> EngineInfo:
    manifest = load_manifest(folder, verify=False)
    run = Run(_parent(folder)) if (_parent(folder) / RUN_FILE).is_file() else None
    entry = run_entry(run) if run else None
    sizes = {name: info.bytes for name, info in manifest.files.items()}
    try:
        origin = run.record.provenance if run else {}
    except Q8TRTError:  # the run is damaged, and its engine is not
        origin = {}
    command, commit = (str(origin.get(name) or "") for name in ("command", "git_commit"))
    return EngineInfo(str(folder), manifest, entry, command, commit, sizes)


def info_facts(info: RunInfo | EngineInfo) -> list[tuple[str, str]]:
    """Return names and texts of the facts; a fact without a value is left out."""
    facts = _run_facts(info) if isinstance(info, RunInfo) else _engine_facts(info)
    return [(name, one_line(text)) for name, text in facts if text]


def _run_facts(info: RunInfo) -> list[tuple[str, str]]:
    entry, data = info.entry, info.data
    engines = [f"{each.name} ({each.label or 'damaged'}, {mib(each.bytes)})" for each in entry.engines]
    return [
        (info.kind, info.folder),
        ("run", entry.folder if info.kind == "checkpoint" else ""),
        ("model", entry.model),
        ("task", entry.task),
        ("head", info.head),
        ("precision", info.precision.label),
        ("recipe", f"{entry.recipe} ({info.quantizer})" if entry.recipe else ""),
        ("target", entry.target),
        ("data", ", ".join(data.files.values()) or data.source),
        ("rows", ", ".join(f"{name} {count}" for name, count in data.rows.items())),
        ("columns", data.columns.removeprefix("columns: ")),
        ("length", f"{data.max_seq_length} tokens at most"),
        ("settings", info.settings),
        ("training", " ".join(info.options)),
        *_score_facts(info.scores),
        *((name, str(value)) for name, value in info.details.items() if isinstance(value, str | int | float)),
        ("engines", ", ".join(engines) if info.kind == "run" else ""),
        ("command", info.command),
        *_origin_facts(info.commit, entry.created, info.versions),
        ("sizes", _size_text(info.sizes)),
    ]


def _engine_facts(info: EngineInfo) -> list[tuple[str, str]]:
    manifest, run = info.manifest, info.run
    built, record = manifest.backend, manifest.record
    fused = record.export.options.fuse_qkv
    target = f"{built.name} {built.version}, SM {', '.join(built.sm_targets) or 'of the GPU'}" if built else "no plan"
    return [
        ("engine", info.folder),
        ("run", run.folder if run else ""),
        ("model", f"{manifest.model.name} ({manifest.model.model_type})"),
        ("task", manifest.task.name),
        ("head", f"{manifest.head.kind.value}, {plural(manifest.head.outputs, 'output')}"),
        ("labels", ", ".join(manifest.task.labels)),
        ("precision", manifest.precision.label),
        ("recipe", manifest.recipe_name),
        ("target", run.target if run else ""),
        ("stage", manifest.stage),
        ("inputs", ", ".join(manifest.inputs)),
        ("length", f"{manifest.model.max_seq_length} tokens, {manifest.model.max_position_embeddings} positions"),
        ("profiles", f"batch x sequence {show_profiles(manifest.profiles)}" if manifest.profiles else ""),
        ("backend", target),
        ("fused QKV", "" if fused is None else switch(fused)),
        ("linter", plural(record.findings, "warning")),
        *_score_facts(manifest.metrics),
        ("command", info.command),
        *_origin_facts(info.commit, manifest.created, {"q8trt": manifest.q8trt_version}),
        ("sizes", _size_text(info.sizes)),
    ]


def _score_facts(stages: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a fact for each split of each stage, with its metrics as `score_text` shows them."""
    return [
        (
            f"{stage.replace('_', ' ')} {split}",
            ", ".join(
                f"{name} {score_text(name, value)}" for name, value in metrics.items() if isinstance(value, int | float)
            ),
        )
        for stage, splits in stages.items()
        for split, metrics in (splits.items() if isinstance(splits, dict) else ())
        if isinstance(metrics, dict)
    ]


def _origin_facts(commit: str, created: str, versions: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("commit", commit),
        ("created", created),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _size_text(sizes: Mapping[str, int]) -> str:
    """Return names and sizes, without those below 0.1 MiB."""
    return ", ".join(f"{name} {mib(size)}" for name, size in sizes.items() if size >= _LEAST)
