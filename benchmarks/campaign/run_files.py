"""Damaged ``run.json`` and ``quantization.json``: given to the commands that read runs, and to the loader of checkpoints."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.mutations import json_mutations
from benchmarks.campaign.sample import calibrated_run


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield 518 of ``run.json`` and 520 of ``quantization.json``."""
    run = calibrated_run(base)
    record = json.loads((run / "run.json").read_text())
    read = Case("run.json: sound", _read_run, partial(_with, run, "run.json", None), seconds=20, expect="ok")
    yield read
    for name, data in json_mutations(record, random, 400):
        setup = partial(_with, run, "run.json", data)
        yield Case(f"run.json: read {name}", _read_run, setup, seconds=20, mib=512)
    commands: tuple[Sequence[str], ...] = (
        ("build-engine", "--checkpoint", "tiny", "--max_shapes", "32x999", "--backend", "tensorrt_rtx"),
        ("finetune", "--resume", "--runs_dir", "."),
        ("calibrate", "--runs_dir", ".", "--recipe", "nowhere.yaml"),
        ("pack", "tiny/ptq"),
        ("parity", "--engine", "tiny/ptq"),
    )
    for number, (name, data) in enumerate(json_mutations(record, random, 118)):
        call = commands[number % len(commands)]
        yield Case(f"run.json: {call[0]} {name}", call, partial(_with, run, "run.json", data), seconds=120, mib=2048)
    for number, (name, data) in enumerate(json_mutations(record, random, 10)):
        setup = partial(_beside, run, data)
        yield Case(f"run.json: another run {number} {name}", _newest, setup, expect="ok", seconds=60)
    recipe = json.loads((run / "ptq" / "quantization.json").read_text())
    answer = base / "answer.json"
    sound = Case(
        "quantization.json: sound", _load(answer), partial(_with, run, "ptq/quantization.json", None), expect="ok"
    )
    yield sound
    for name, data in json_mutations(recipe, random, 519):
        setup = partial(_with, run, "ptq/quantization.json", data)
        yield Case(
            f"quantization.json: {name}",
            _load(answer),
            setup,
            _same(answer),
            seconds=60,
            mib=1024,
            writes=("answer.json",),
        )


def _with(run: Path, name: str, data: bytes | None, folder: Path) -> None:
    shutil.copytree(run, folder / "tiny", ignore=shutil.ignore_patterns("checkpoints", "logs"))
    if data is not None:
        (folder / "tiny" / name).write_bytes(data)


def _beside(run: Path, data: bytes, folder: Path) -> None:
    """A damaged run that is newer than the sound one."""
    _with(run, "run.json", None, folder)
    (folder / "later").mkdir()
    (folder / "later" / "run.json").write_bytes(data)


def _read_run(folder: Path) -> None:
    """Everything that commands take from a run before they load a model."""
    from q8trt.deployment.source import find_source
    from q8trt.quantization.precision import Precision
    from q8trt.runs.config import config_of_run
    from q8trt.runs.run import STAGES, open_run
    from q8trt.runs.search import newest_run

    run = open_run("tiny")
    for stage in STAGES:
        run.stage(stage)
        run.checkpoint(stage)
    run.best_quantized()
    config = config_of_run(run)
    _ = config.data.resolved_task
    newest_run(".", ("fp32",))
    source = find_source(Precision.INT8, "tiny", ".")
    _ = source.task


def _newest(folder: Path) -> None:
    """One damaged run must not stand in the way of another."""
    from q8trt.runs.search import newest_run

    if newest_run(".", ("ptq",)).path.name not in ("tiny", "later"):
        raise AssertionError("not a run")


def _load(answer: Path) -> partial[None]:
    return partial(_load_quantized, answer)


def _load_quantized(answer: Path, folder: Path) -> None:
    """Write the logits of the checkpoint: to `answer` if it is missing, which the sound case comes first to."""
    import torch

    from q8trt.models.checkpoints import load_quantized

    model, _ = load_quantized("tiny/ptq")
    ids = torch.arange(1, 25).reshape(2, 12)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()
    (answer if not answer.exists() else folder / "answer.json").write_text(json.dumps(logits))


def _same(answer: Path) -> partial[str]:
    return partial(_compare, answer)


def _compare(answer: Path, outcome: Outcome, folder: Path) -> str:
    expected, actual = answer.read_text(), (folder / "answer.json").read_text()
    return "" if expected == actual else f"logits {actual[:40]}, not {expected[:40]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("run_files", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
