"""Run folders whose run.json was damaged, given to what commands read from it; a sound, older run is beside each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.driver import Case, run_area
from benchmarks.campaign.mutations import flipped, json_mutations, spliced, truncated

_CHECKPOINTS = ("../../etc", "/etc", "fp32/../../x", "", ".", "..", "a\x00b", "\x1b[31m", "x" * 300, "~", "fp32\n")


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield some 1,500 cases: each damaged file is named, and is also met on the way to the newest run."""
    from q8trt.runs.config import FinetuneConfig
    from q8trt.runs.run import new_run
    from q8trt.runs.training_config import TrainingConfig
    from q8trt.tasks.data import DataConfig

    config = FinetuneConfig(DataConfig("STS-B", sample=True), TrainingConfig())
    run = new_run(base / "run", {"command": "python finetune.py"}, "STS-B", config.to_dict())
    for stage in ("fp32", "ptq"):
        run.finish_stage(stage, {"checkpoint": stage, "scores": {"dev": {"pearson": 0.5}}, "steps": 3})  # type: ignore[arg-type]
    sound = (base / "run" / "run.json").read_bytes()
    yield from _both("sound", sound, sound, "ok")
    for mutate, count in ((flipped, 150), (truncated, 60), (spliced, 90)):
        for number in range(count):
            yield from _both(f"{mutate.__name__}: {number}", mutate(sound, random), sound)
    for name, data in json_mutations(json.loads(sound), random, 450):
        yield from _both(f"json: {name}", data, sound)
    for name in _CHECKPOINTS:
        document = json.loads(sound)
        document["stages"]["ptq"]["checkpoint"] = name
        yield from _both(f"checkpoint: {name!r}", json.dumps(document).encode(), sound)
    for number, data in enumerate((b"", b"null", b"[" * 10**6, b'{"a":' * 10**5, b"\xff\xfe", b"9" * 10**5)):
        yield from _both(f"odd: {number}", data, sound)


def _both(name: str, data: bytes, sound: bytes, expect: str = "") -> Iterator[Case]:
    def setup(folder: Path) -> None:
        for run, content in (("sound", sound), ("damaged", data)):
            (folder / "runs" / run).mkdir(parents=True)
            (folder / "runs" / run / "run.json").write_bytes(content)
        os.utime(folder / "runs" / "sound" / "run.json", (1, 1))

    yield Case(f"named {name}", _named, setup, expect=expect, seconds=10, mib=256)
    yield Case(f"newest {name}", _newest, setup, expect="ok", seconds=10, mib=256)


def _named(folder: Path) -> Any:
    """Read all that commands read of a run: its source, shapes, scores and rows, and what is left to do."""
    from q8trt.cli.finetune import summary
    from q8trt.deployment.engine_folder import check_output
    from q8trt.deployment.source import find_source
    from q8trt.engine.shapes import ShapeOptions
    from q8trt.quantization.precision import Precision
    from q8trt.runs.search import how_to_finish

    source = find_source(Precision.INT8, "runs/damaged", "runs")
    if not source.checkpoint.is_absolute() and ".." in source.checkpoint.parts:
        raise AssertionError(f"{source.checkpoint} leaves the run")
    check_output(source, None)
    ShapeOptions().profiles(source.config.data.max_seq_length)
    how_to_finish(source.run, ("int8",))
    return summary(source.run, source.task, source.config.data.sample)


def _newest(folder: Path) -> Any:
    """Look for the newest run, as most commands do; the damaged one must not stand in the way."""
    from q8trt.deployment.source import find_source
    from q8trt.quantization.precision import Precision
    from q8trt.training.execution import unfinished_run

    unfinished_run("newest", "runs")
    return find_source(Precision.INT8, None, "runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("runs", cases, argv)
