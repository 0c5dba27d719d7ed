"""Scores of many runs, of the exported ONNX files on ONNX Runtime, as one table: recipes x PTQ, QAT, QAT + distillation.

    python finetune.py ... --recipe full --seed 43 --output_dir runs/full-43      for each cell
    python benchmarks/score_matrix.py score runs/*                                exports and scores each finished stage
    python benchmarks/score_matrix.py table runs/* --name sts-b-minilm-recipes    -> benchmarks/results/NAME.{json,md}
    python benchmarks/score_matrix.py table runs/* --name ... --merge             keeps the cells that no run given replaces

A run's `score.json` holds what `score` found, so that it does nothing twice.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from q8trt import files
from q8trt.export.onnx import export_onnx
from q8trt.hardware.provenance import provenance
from q8trt.models import checkpoints, load_tokenizer
from q8trt.quantization.precision import Precision
from q8trt.reporting import Column, Table, words
from q8trt.reporting.markdown import markdown_table
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import RUN_FILE, STAGES, Run, open_run
from q8trt.runs.training_config import TrainingConfig
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.runtime.scores import evaluate
from q8trt.tasks.data import load_dev, tokenize

SCORE_FILE = "score.json"
RESULTS = Path(__file__).parent / "results"


def score_stage(run: Run, stage: str, config: FinetuneConfig, threads: int | None) -> dict[str, Any]:
    """Metrics of one stage's exported file on the development set, and the file's size."""
    folder, task = run.checkpoint(stage), config.data.resolved_task
    assert folder is not None
    quantized = checkpoints.is_quantized(folder)
    model = checkpoints.load_quantized(folder)[0] if quantized else checkpoints.load_finetuned(folder, task)
    tokenizer, length = load_tokenizer(str(folder)), config.data.max_seq_length
    rows = tokenize(next(iter(load_dev(config.data).values())), tokenizer, length)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names]
    with tempfile.TemporaryDirectory() as temporary:
        path, precision = Path(temporary) / "model.onnx", Precision.INT8 if quantized else Precision.FP32
        export_onnx(model, path, precision, names)
        with OnnxRuntimeRunner(path, precision, threads=threads) as runner:
            result = evaluate(runner, rows, tokenizer.pad_token_id, length)
        return {"metrics": result.metrics, "onnx_bytes": path.stat().st_size, "rows": len(rows)}


def score(paths: Sequence[str], threads: int | None, stages: Sequence[str] = STAGES) -> None:
    """Score those of `stages` that every run has finished and that have no score yet."""
    for path in paths:
        run = open_run(path)
        target, config = run.path / SCORE_FILE, FinetuneConfig.from_dict(run.record.config)
        known: dict[str, Any] = files.read_json(target) if target.exists() else {"stages": {}}
        # The FP32 stage of a run that was given one is the teacher's, scored once, in the teacher's own run.
        wanted = [stage for stage in stages if run.stage(stage) and not (stage == "fp32" and config.from_fp32)]
        for stage in wanted:
            if stage not in known["stages"]:
                known["stages"][stage] = score_stage(run, stage, config, threads)
                known["provenance"] = provenance(sys.argv)
                files.write_json(target, known)
                print(path, stage, known["stages"][stage]["metrics"], flush=True)


def _fp32_training(config: FinetuneConfig) -> TrainingConfig:
    """Return the training that made the FP32 model; for a run that was given one, that of the run which owns it."""
    if config.from_fp32 and (Path(config.from_fp32).parent / RUN_FILE).exists():
        owner = open_run(Path(config.from_fp32).parent)
        return _fp32_training(FinetuneConfig.from_dict(owner.record.config))
    return config.training


def _cells(path: str) -> list[dict[str, Any]]:
    """One entry for each scored stage of a run."""
    run = open_run(path)
    record, scores = run.record, files.read_json(run.path / SCORE_FILE)
    config = FinetuneConfig.from_dict(record.config)
    fp32 = _fp32_training(config)
    method = {"fp32": "FP32", "ptq": "PTQ", "int8": "QAT + distillation" if config.distillation else "QAT"}
    return [
        {
            "recipe": "-" if stage == "fp32" else config.recipe.name,
            "method": method[stage],
            "fp32_epochs": fp32.num_train_epochs,
            "seed": fp32.seed,
            "run": run.path.name,
            "metrics_x100": {name: round(100 * value, 3) for name, value in entry["metrics"].items()},
            "onnx_bytes": entry["onnx_bytes"],
            "torch_metrics_x100": {
                split: {name: round(100 * value, 3) for name, value in metrics.items()}
                for split, metrics in record.stages[stage].scores.items()
            },
            "step_seconds_median": record.stages[stage].details.get("step_seconds_median"),
            "training": record.provenance or {"command": record.more["command"], "date_utc": record.created},
            "scoring": scores["provenance"],
        }
        for stage, entry in scores["stages"].items()
    ]


def _summary(values: list[float]) -> str:
    """``"86.84 ± 0.02 (3)"``: mean, sample standard deviation, number of seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"


def _trained_on(cell: Mapping[str, Any]) -> str:
    """``"NVIDIA H100 80GB HBM3"``, or the name of the CPU, or "unknown hardware"."""
    hardware = cell["training"].get("hardware", {})
    return ", ".join(hardware.get("gpus") or [hardware.get("cpu") or "unknown hardware"])


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the key of a cell; only FP32 models differ in epochs."""
    return cell["recipe"], cell["method"], cell["seed"], cell["fp32_epochs"] if cell["method"] == "FP32" else None


def table(paths: Sequence[str], name: str, renamed: Mapping[str, str], merge: bool = False) -> None:
    """Write benchmarks/results/NAME.json and .md from scored runs of one task.

    Args:
        paths: run folders.
        name: of the two files.
        renamed: recipes' old names -> new ones.
        merge: keep the cells of an earlier NAME.json for which `paths` have none.
    """
    cells = [cell for path in paths if (Path(path) / SCORE_FILE).exists() for cell in _cells(path)]
    cells = [{**cell, "recipe": renamed.get(cell["recipe"], cell["recipe"])} for cell in cells]
    if merge:
        measured = {_key(cell) for cell in cells}
        earlier = files.read_json(RESULTS / f"{name}.json")["cells"]
        # The last of several runs of one cell is the one that the table showed.
        cells = [*{_key(cell): cell for cell in earlier if _key(cell) not in measured}.values(), *cells]
    configs = [FinetuneConfig.from_dict(open_run(path).record.config) for path in paths]
    task = configs[0].data.resolved_task
    metric, groups = task.main_metric, defaultdict(dict)  # type: ignore[var-annotated]
    for cell in cells:
        epochs = f", {cell['fp32_epochs']:g} epochs" if cell["method"] == "FP32" else ""
        # Two runs of one recipe and seed share their PTQ, which is the same to the bit.
        groups[cell["recipe"], cell["method"] + epochs][cell["seed"]] = cell["metrics_x100"][metric]
    trained = " and ".join(sorted({_trained_on(cell) for cell in cells}))
    lines = [
        f"# {task.name}: {metric} x100 of the exported ONNX files on ONNX Runtime (CPU), development set",
        "",
        f"Mean ± sample standard deviation (number of seeds). Not TensorRT's scores. Trained on {trained}.",
        "",
    ]
    rows = []
    for (recipe, method), seeds in sorted(groups.items()):
        each = ", ".join(f"{seed}: {value:.2f}" for seed, value in sorted(seeds.items()))
        rows.append((recipe, method, _summary(list(seeds.values())), each))
    columns = words("recipe"), words("method"), Column(metric, "x100"), words("by seed")
    lines += markdown_table(Table(columns, tuple(rows)))
    files.write_json(RESULTS / f"{name}.json", {"task": task.name, "metric": metric, "cells": cells})
    files.write_text(RESULTS / f"{name}.md", "\n".join(lines))
    print("\n".join(lines))


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("score", "table"))
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--name", default="score-matrix", help="of the files that `table` writes")
    parser.add_argument(
        "--renamed", nargs="*", default=[], metavar="OLD=NEW", help="recipes that have another name by now, for `table`"
    )
    parser.add_argument(
        "--merge", action="store_true", help="keep earlier cells of NAME that no run replaces, for `table`"
    )
    parser.add_argument("--threads", type=int, help="of ONNX Runtime; default: the physical cores")
    options = parser.parse_args()
    if options.action == "score":
        score(options.runs, options.threads)
    else:
        table(options.runs, options.name, dict(pair.split("=", 1) for pair in options.renamed), options.merge)


if __name__ == "__main__":
    main()
