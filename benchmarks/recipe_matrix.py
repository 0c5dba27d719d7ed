"""The whole table of recipes on a machine with a GPU: FP32, then every recipe x PTQ, QAT, QAT + distillation, several at once.

    python benchmarks/recipe_matrix.py --data_dir GLUE --output_dir runs/matrix --workers 12
    python benchmarks/score_matrix.py table runs/matrix/sts-b-*/ --name sts-b-minilm-recipes

One small model leaves most of a GPU idle, and each step waits for Python; so the cells share it, a process and a core each.
A finished cell is not computed again, so what was stopped or has failed is continued by the same command. No stage looks at the
development set before its end: all cells, FP32 too, end with their last step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SEEDS = (42, 43, 44)
RECIPES = ("linear", "attention", "full", "q8bert")
LOW_BITS = ("weights-4bit", "embeddings-2bit")
#: What a small model wants; see experiments.md.
FP32 = {"model_name_or_path": "minilm", "precision": "fp32", "learning_rate": 1e-4, "dropout": 0.0}


@dataclass(frozen=True)
class Cell:
    """One run of `q8trt.finetune`.

    Attributes:
        name: of its folder, "sts-b-full-qat-42".
        options: of `q8trt.finetune`, without data, seed and folder.
        task: of GLUE.
        seed: of everything.
        needs: the cell whose FP32 checkpoint it starts from.
        stages: those to score.
    """

    name: str
    options: dict[str, Any] = field(hash=False)
    task: str
    seed: int
    needs: str | None
    stages: tuple[str, ...]


def cells() -> list[Cell]:
    """All cells, what others wait for first."""
    tasks = {"STS-B": "sts-b", "MRPC": "mrpc", "RTE": "rte"}
    listed = [Cell(f"{tasks[task]}-fp32-{seed}", FP32, task, seed, None, ("fp32",)) for task in tasks for seed in SEEDS]
    longer = {**FP32, "num_train_epochs": 4}
    listed += [Cell(f"sts-b-fp32-4-epochs-{seed}", longer, "STS-B", seed, None, ("fp32",)) for seed in SEEDS]

    def quantized(task: str, recipe: str, seed: int, taught: bool) -> Cell:
        path = str(HERE / "recipes" / f"{recipe}.yaml") if recipe in LOW_BITS else recipe
        options = {"recipe": path, "distillation": taught}
        name = f"{tasks[task]}-{recipe}-{'kd' if taught else 'qat'}-{seed}"
        # PTQ is the same with and without a teacher: it is scored once.
        stages = ("ptq", "int8") if taught else ("int8",)
        return Cell(name, options, task, seed, f"{tasks[task]}-fp32-{seed}", stages)

    listed += [quantized("STS-B", recipe, seed, True) for recipe in RECIPES for seed in SEEDS]
    listed += [quantized(task, "full", seed, True) for task in ("MRPC", "RTE") for seed in SEEDS]
    listed += [quantized("STS-B", recipe, seed, False) for recipe in RECIPES for seed in SEEDS]
    listed += [quantized("STS-B", recipe, seed, True) for recipe in LOW_BITS for seed in SEEDS]
    return listed


def compute(cell: Cell, args: argparse.Namespace) -> None:
    """Train and score `cell`, in a process of its own; its output goes to the cell's log."""
    log = args.output_dir / f"{cell.name}.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    import q8trt
    from q8trt.cli.finetune import PARSER

    torch.set_num_threads(1)
    folder = args.output_dir / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    options = {"data_dir": args.data_dir, "task": cell.task, **cell.options, "seed": cell.seed, "do_eval": False}
    options |= {"save_steps": 1_000_000, **PARSER.typed_options(args.more)}
    if cell.needs is not None:
        options["from_fp32"] = args.output_dir / cell.needs / "fp32"
    try:
        q8trt.finetune(**options, output_dir=folder, on_message=print)
        import score_matrix

        sys.argv = ["benchmarks/score_matrix.py", "score", str(folder), "--threads", "1"]
        score_matrix.score([str(folder)], 1, cell.stages)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the Trainer's own, three times the size of the model


def finished(cell: Cell, folder: Path) -> bool:
    """Return whether `cell` has its scores."""
    return (folder / cell.name / "score.json").exists()


class Matrix:
    """Keeps a number of processes busy with cells, those first that others wait for.

    Args:
        args: of the command.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.started = args, time.monotonic()
        # Not forked: importing the libraries has touched CUDA, which a forked process may not use.
        self.context = multiprocessing.get_context("spawn")
        self.waiting = [cell for cell in cells() if not finished(cell, args.output_dir)]
        self.running: dict[Cell, Any] = {}
        self.failed: set[str] = set()

    def compute(self) -> int:
        """Compute all cells, or as many as time allows; the number of those that failed."""
        while self.running or (self.waiting and not self.late):
            self._gather()
            self._begin()
            time.sleep(0.2)
        for cell in self.waiting:
            self._say(f"not begun: {cell.name}")
        return len(self.failed)

    @property
    def late(self) -> bool:
        """Return whether no further cell may begin."""
        minutes = self.args.max_minutes
        return minutes is not None and time.monotonic() - self.started > 60 * minutes

    def _gather(self) -> None:
        for cell in [cell for cell, process in self.running.items() if process.exitcode is not None]:
            del self.running[cell]
            good = finished(cell, self.args.output_dir)
            if not good:
                self.failed.add(cell.name)
            self._say(f"done {cell.name}" if good else f"FAILED {cell.name}: see {cell.name}.log")

    def _begin(self) -> None:
        unfinished = {cell.name for cell in (*self.waiting, *self.running)}
        for cell in list(self.waiting):
            if cell.needs in self.failed:
                self.waiting.remove(cell)
                self.failed.add(cell.name)
                self._say(f"not begun, {cell.needs} failed: {cell.name}")
            elif not self.late and len(self.running) < self.args.workers and cell.needs not in unfinished:
                self.waiting.remove(cell)
                self.running[cell] = self.context.Process(target=compute, args=(cell, self.args))
                self.running[cell].start()

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:6.0f} s  {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="the GLUE folder")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="cells at a time")
    parser.add_argument("--max_minutes", type=float, help="begin no further cell after so many")
    parser.add_argument("more", nargs="*", help="further options of finetune.py, after --")
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    sys.path.insert(0, str(HERE))
    return 1 if Matrix(args).compute() else 0


if __name__ == "__main__":
    sys.exit(main())
