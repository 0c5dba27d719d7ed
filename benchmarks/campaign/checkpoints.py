"""Damaged checkpoints: the Trainer's under `finetune.py --resume`, and the stages' as every later step loads them.

A damaged checkpoint of the Trainer must cost time only: the run ends with the weights, to the bit, of a run that was never
interrupted. A damaged stage must be refused.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign.children import in_child
from benchmarks.campaign.driver import Case, Outcome, run_area, snapshot
from benchmarks.campaign.mutations import flipped, json_mutations, spliced, truncated

TESTS = Path(__file__).resolve().parents[2] / "tests"
#: An evaluation after step 4; the run stops at step 6. So checkpoint-4 is the best and checkpoint-6 the newest.
STOP, STEPS = 6, 10
_OPTIONS = ["--max_steps", str(STEPS), "--eval_steps", "4", "--save_steps", "4"]


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield 126 damaged checkpoints of the Trainer, and some 700 damaged stages."""
    sys.path.insert(0, str(TESTS))
    in_child(partial(_make_runs, base))
    stopped = base / "stopped"
    for checkpoint in ("checkpoint-4", "checkpoint-6"):
        for path in sorted((stopped / "checkpoints" / "fp32" / checkpoint).iterdir()):
            for name, data in _damages(path.read_bytes()):
                yield _resumed(base, f"{checkpoint}: {path.name} {name}", path.relative_to(stopped), data)
    for stage in ("fp32", "ptq"):
        for path in sorted((base / "whole" / stage).iterdir()):
            data = path.read_bytes()
            for number in range(15):
                for mutate in (flipped, truncated, spliced):
                    yield _loaded(base, f"{stage}: {path.name} {mutate.__name__} {number}", path, mutate(data, random))
            yield _loaded(base, f"{stage}: {path.name} missing", path, None)
    recipe = base / "whole" / "ptq" / "quantization.json"
    for name, changed in json_mutations(json.loads(recipe.read_text()), random, 200):
        yield _loaded(base, f"quantization.json: {name}", recipe, changed, sealed=False)


def _make_runs(base: Path) -> None:
    """Make a run that was never interrupted (`whole`) and one that stopped (`stopped`), with the same options."""
    import signal

    import torch
    from conftest import make_model, make_tokenizer
    from tiny_data import SHORT, write_sts_b

    from q8trt.cli.main import run_command
    from q8trt.models.checkpoints import save_checkpoint
    from q8trt.training import stage as training

    torch.set_num_threads(1)
    save_checkpoint(base / "model", make_model(), make_tokenizer())
    data = [
        "--task",
        "STS-B",
        "--data_dir",
        str(write_sts_b(base / "data")),
        "--model_name_or_path",
        str(base / "model"),
    ]
    options = [*data, *SHORT, *_OPTIONS]
    assert run_command("finetune", [*options, "--no_qat", "--output_dir", str(base / "whole")]) == 0
    original = training._Trainer.training_step

    def training_step(self: training._Trainer, *args: object, **kwargs: object) -> object:
        if self.state.global_step == STOP - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    training._Trainer.training_step = training_step  # type: ignore[method-assign, assignment]
    assert run_command("finetune", [*options, "--precision", "fp32", "--output_dir", str(base / "stopped")]) == 143


def _damages(data: bytes) -> Iterator[tuple[str, bytes | None]]:
    yield "missing", None
    for length in (0, len(data) // 2, len(data) - 2):
        yield f"cut to {length}", data[:length]
    for position in (0, len(data) // 2, len(data) - 2):
        yield f"flipped at {position}", data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def _write(path: Path, data: bytes | None) -> None:
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def _resumed(base: Path, name: str, path: Path, data: bytes | None) -> Case:
    def setup(folder: Path) -> None:
        shutil.copytree(base / "stopped", folder / "run")
        _write(folder / "run" / path, data)

    def oracle(outcome: Outcome, folder: Path) -> str:
        for each in ("fp32", f"checkpoints/fp32/checkpoint-{STEPS}"):
            if (
                snapshot(folder / "run" / each)["model.safetensors"]
                != snapshot(base / "whole" / each)["model.safetensors"]
            ):
                return f"{each} is not that of a run without interruption"
        return ""

    return Case(name, ("finetune", "--resume", "run"), setup, oracle, writes=("run",), exits=(), seconds=120, mib=2048)


def _loaded(base: Path, name: str, path: Path, data: bytes | None, sealed: bool = True) -> Case:
    stage = path.parent

    def setup(folder: Path) -> None:
        shutil.copytree(stage, folder / stage.name)
        if not sealed:
            (folder / stage.name / "hashes.json").unlink()
        _write(folder / stage.name / path.name, data)

    def load(folder: Path) -> None:
        from q8trt.models import load_tokenizer
        from q8trt.models.checkpoints import load_finetuned, load_quantized
        from q8trt.tasks.glue import get_task

        if stage.name == "fp32":
            load_finetuned(folder / stage.name, get_task("STS-B"))
        else:
            load_quantized(folder / stage.name)
        load_tokenizer(str(folder / stage.name))

    def oracle(outcome: Outcome, folder: Path) -> str:
        changed = snapshot(folder / stage.name)
        changed.pop("hashes.json", None)
        same = changed.items() <= snapshot(stage).items()
        return "" if same or not sealed else f"{path.name} was changed and loaded"

    return Case(name, load, setup, oracle, exits=(2,), seconds=60)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("checkpoints", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
