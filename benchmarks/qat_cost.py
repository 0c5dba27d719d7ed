"""Measure the cost of quantization on the way to it: QAT steps against FP32 steps, interleaved in one run, and calibration.

    python benchmarks/qat_cost.py RUN --recipe full --name qat-cost-minilm-full

RUN is a finished run of finetune.py; its FP32 stage is the model and the teacher. Optimizer steps (forward, backward,
AdamW) of the FP32 model, of the quantized one and of the quantized one with its teacher take turns on the same batches.
Calibration is timed before them, with the peak of the process's resident memory before and after.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from q8trt import files
from q8trt.hardware.provenance import provenance
from q8trt.models import checkpoints
from q8trt.quantization.recipe import load_recipe
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import open_run
from q8trt.tasks.data import Collator
from q8trt.training.calibrating import quantize
from q8trt.training.distillation import logit_distance
from q8trt.training.finetuning import load_inputs

RESULTS = Path(__file__).parent / "results"


def _peak_mib() -> float:
    """Largest resident memory so far, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def calibration(model: Any, config: FinetuneConfig, inputs: Any) -> tuple[Any, dict[str, float]]:
    """A calibrated model, and what it took."""
    with torch.no_grad():  # so that what a forward pass takes anyway is in the figure before
        rows = [inputs.train[index] for index in range(16)]
        batch = Collator(inputs.tokenizer.pad_token_id, max_length=config.data.max_seq_length)(rows)
        model.eval()(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    before, started = _peak_mib(), time.perf_counter()
    quantized, _ = quantize(model, config, inputs)
    seconds = time.perf_counter() - started
    return quantized, {
        "rows": config.calibration_samples,
        "seconds": round(seconds, 1),
        "peak_mib_before": round(before),
        "peak_mib": round(_peak_mib()),
    }


def _step(model: Any, optimizer: Any, batch: Any, teacher: Any, is_regression: bool) -> float:
    started = time.perf_counter()
    outputs = model(**batch)
    loss = outputs.loss
    if teacher is not None:
        with torch.no_grad():
            target = teacher(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        loss = 0.5 * loss + 0.5 * logit_distance(outputs.logits, target, is_regression, 1.0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - started


def steps(model: Any, quantized: Any, config: FinetuneConfig, inputs: Any, count: int) -> dict[str, Any]:
    """Seconds of a step of each kind: medians of `count` steps after three of warm-up, and ratios to FP32."""
    teacher = checkpoints.load_finetuned(Path(str(model.name_or_path)), config.data.resolved_task).eval()
    collate = Collator(inputs.tokenizer.pad_token_id, tuple(range(8, 513, 8)), config.data.max_seq_length)
    kinds = {"fp32": (model, None), "qat": (quantized, None), "qat_with_teacher": (quantized, teacher)}
    optimizers = {id(m): torch.optim.AdamW(m.parameters(), lr=1e-6, fused=True) for m in (model, quantized)}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    order = torch.randperm(len(inputs.train), generator=torch.Generator().manual_seed(0)).tolist()
    for number in range(count + 3):
        batch = collate([inputs.train[index] for index in order[16 * number : 16 * (number + 1)]])
        for kind, (student, teaching) in kinds.items():
            taken = _step(
                student.train(), optimizers[id(student)], batch, teaching, config.data.resolved_task.is_regression
            )
            if number >= 3:
                seconds[kind].append(taken)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "steps": count,
        "seconds_median": {kind: round(value, 4) for kind, value in medians.items()},
        "ratio_to_fp32": {kind: round(value / medians["fp32"], 3) for kind, value in medians.items()},
    }


def main() -> None:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--recipe", default="full")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--name", default="qat-cost")
    options = parser.parse_args()
    run = open_run(options.run)
    record = {**run.record.config, "recipe": load_recipe(options.recipe).to_dict()}
    config = FinetuneConfig.from_dict(record)
    inputs, folder = load_inputs(config), run.checkpoint("fp32")
    model = checkpoints.load_finetuned(str(folder), config.data.resolved_task)
    quantized, cost = calibration(model, config, inputs)
    result = {
        "recipe": config.recipe.name,
        "calibration": cost,
        "step": steps(model, quantized, config, inputs, options.steps),
    }
    print(result)
    files.write_json(RESULTS / f"{options.name}.json", {**result, "provenance": provenance(sys.argv)})


if __name__ == "__main__":
    main()
