"""Measure `q8trt.Engine` in an app: its answers against torch, and its rate against transformers' pipeline, on the CPU.

    python benchmarks/app_figures.py RUN --name app-minilm-full

RUN is a finished run with an engine (`engine`, else `--engine`; neither: it is built into a temporary folder). On its
development set:

- `predict` on all rows against the torch model that was exported: the largest difference, and the metric of both and of FP32;
- `predict` on `--rows` of them against transformers' text-classification pipeline over the FP32 checkpoint, at each of
  `--pipeline_batch_sizes`, in turn; the ratio is to the fastest. The time in tokenization is taken inside `predict`;
- `--threads` threads with `--requests` requests each, and `--concurrent` calls of `apredict` at once: each answer compared
  with that of the same item alone, one after the other, and the rates.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import q8trt
from q8trt import Answer, Engine, files
from q8trt.hardware.provenance import provenance
from q8trt.models import checkpoints, load_tokenizer
from q8trt.quantization.precision import Precision
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import Run, open_run
from q8trt.runtime.scores import evaluate
from q8trt.runtime.torch_runner import TorchRunner
from q8trt.tasks.data import Examples, load_dev, tokenize
from q8trt.tasks.metrics import compute_from_logits

RESULTS = Path(__file__).parent / "results"


def items_of(examples: Examples) -> list[Any]:
    """The texts or pairs of a split, as `predict` takes them."""
    return list(examples.first) if examples.second is None else list(zip(examples.first, examples.second, strict=True))


def answers_against_torch(engine: Engine, run: Run, examples: Examples) -> dict[str, Any]:
    """The engine's logits of all rows beside those of the model that it was made from, and of FP32."""
    task, stage = examples.task, engine.manifest.stage
    assert examples.labels is not None
    logits = engine.logits(items_of(examples))
    result: dict[str, Any] = {"rows": len(logits), "truncated": engine.truncated}
    result["metrics"] = {"engine": compute_from_logits(task, logits, examples.labels)}
    for name in dict.fromkeys((stage, "fp32")):
        folder = run.checkpoint(name)
        assert folder is not None
        quantized = checkpoints.is_quantized(folder)
        model = checkpoints.load_quantized(folder)[0] if quantized else checkpoints.load_finetuned(folder, task)
        tokenizer = load_tokenizer(str(folder))
        features = tokenize(examples, tokenizer, engine.limits.max_length)
        with TorchRunner(model, Precision.INT8 if quantized else Precision.FP32) as runner:
            scored = evaluate(runner, features, tokenizer.pad_token_id, engine.limits.max_length)
        difference = np.abs(logits - scored.logits)
        result["metrics"][f"torch_{name}"] = scored.metrics
        result[f"difference_to_torch_{name}"] = {
            "largest": float(difference.max()),
            "mean": float(difference.mean()),
            "largest_logit": float(np.abs(scored.logits).max()),
        }
    return result


class Stopwatch:
    """Sums up the seconds inside a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        started = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.perf_counter() - started


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of `work`."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def throughput(
    engine: Engine, checkpoint: Path, items: Sequence[Any], batch_sizes: Sequence[int], rounds: int
) -> dict[str, Any]:
    """`predict` and the pipeline in turn, on the same items; medians of `rounds`."""
    import torch
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(checkpoint), device="cpu", function_to_apply="none")
    texts = [{"text": item} if isinstance(item, str) else {"text": item[0], "text_pair": item[1]} for item in items]
    options = {"truncation": True, "max_length": engine.limits.max_length}
    encode = engine._text.encode
    watch = Stopwatch(encode)
    engine._text.encode = watch  # type: ignore[assignment, method-assign]
    taken: dict[str, list[float]] = {"engine": [], **{str(size): [] for size in batch_sizes}}
    shares = []
    engine.predict(items[:64])
    classify(texts[:64], batch_size=8, **options)
    for _ in range(rounds):
        watch.seconds = 0.0
        taken["engine"].append(seconds(lambda: engine.predict(items)))
        shares.append(watch.seconds / taken["engine"][-1])
        for size in batch_sizes:
            taken[str(size)].append(seconds(partial(classify, texts, batch_size=size, **options)))
    engine._text.encode = encode  # type: ignore[method-assign]
    rates = {name: len(items) / statistics.median(each) for name, each in taken.items()}
    ours = rates.pop("engine")
    return {
        "items": len(items),
        "rounds": rounds,
        "engine": {"batch_size": engine.limits.batch_size, "items_per_second": round(ours, 1)},
        "pipeline_fp32": {
            "threads": torch.get_num_threads(),
            "items_per_second_by_batch_size": {name: round(rate, 1) for name, rate in rates.items()},
        },
        "ratio_to_fastest_pipeline": round(ours / max(rates.values()), 2),
        "share_of_tokenization": round(statistics.median(shares), 4),
        "seconds": {name: [round(each, 3) for each in times] for name, times in taken.items()},
    }


def value(answer: float | Answer) -> np.ndarray:
    """An answer as numbers."""
    return np.array(list(answer.probabilities.values()) if isinstance(answer, Answer) else [answer])


def compared(answers: Sequence[Any], expected: Sequence[Any], tolerance: float) -> dict[str, Any]:
    """Return the differences of answers from those that were given one after the other."""
    difference = np.array([np.abs(value(a) - value(b)).max() for a, b in zip(answers, expected, strict=True)])
    return {
        "answers": len(answers),
        "identical": int((difference == 0).sum()),
        "wrong": int((difference > tolerance).sum()),
        "tolerance": tolerance,
        "largest_difference": float(difference.max()),
    }


def concurrency(
    engine: Engine, items: Sequence[Any], threads: int, requests: int, concurrent: int, rounds: int, tolerance: float
) -> dict[str, Any]:
    """Requests of one item: one after the other, from threads, and from an event loop."""
    alone: list[Any] = []
    sequential = len(items) / seconds(lambda: alone.extend(engine.predict([item])[0] for item in items))
    numbers = [number % len(items) for number in range(threads * requests)]
    answers: list[Any] = []
    with ThreadPoolExecutor(threads) as pool:
        rate = len(numbers) / seconds(
            lambda: answers.extend(pool.map(lambda number: engine.predict([items[number]])[0], numbers))
        )
    figures = {
        "sequential_items_per_second": round(sequential, 1),
        "threads": {
            "threads": threads,
            "requests_each": requests,
            "items_per_second": round(rate, 1),
            "ratio_to_sequential": round(rate / sequential, 2),
            **compared(answers, [alone[number] for number in numbers], tolerance),
        },
    }
    together, expected, spent = [], [], 0.0
    for turn in range(rounds):
        chosen = [(turn * concurrent + number) % len(items) for number in range(concurrent)]

        async def ask(chosen: list[int] = chosen) -> None:
            together.extend(await asyncio.gather(*(engine.apredict(items[number]) for number in chosen)))

        spent += seconds(lambda ask=ask: asyncio.run(ask()))  # type: ignore[misc]
        expected += [alone[number] for number in chosen]
    figures["apredict"] = {
        "concurrent": concurrent,
        "rounds": rounds,
        "items_per_second": round(len(together) / spent, 1),
        "ratio_to_sequential": round(len(together) / spent / sequential, 2),
        **compared(together, expected, tolerance),
    }
    return figures


def built(options: argparse.Namespace, run: Run, folder: str) -> Path:
    """The engine folder: the one given, the run's, or a new one in `folder`."""
    if options.engine or (run.path / "engine").is_dir():
        return Path(options.engine or run.path / "engine")
    return q8trt.build_engine(run, output_dir=Path(folder) / "engine")


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--engine", help="the engine folder (default: RUN/engine)")
    parser.add_argument("--rows", type=int, default=1500, help="items of the comparison with the pipeline")
    parser.add_argument("--max_eval_samples", type=int, help="rows of the comparison with torch (default: all)")
    parser.add_argument("--batch_size", type=int, help="of the engine (default: its own)")
    parser.add_argument("--contexts", type=int, default=2, help="of the engine")
    parser.add_argument("--pipeline_batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrent", type=int, default=200)
    parser.add_argument("--tolerance", type=float, default=0.01, help="beyond which an answer is wrong: see `compared`")
    parser.add_argument("--name", default="app")
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    run = open_run(options.run)
    config = FinetuneConfig.from_dict(run.record.config)
    split, examples = next(iter(load_dev(config.data).items()))
    assert isinstance(examples, Examples)
    checkpoint = run.checkpoint("fp32")
    assert checkpoint is not None, f"{run.path} has no FP32 checkpoint"
    cores = len(os.sched_getaffinity(0))
    result: dict[str, Any] = {"task": examples.task.name, "split": split, "source": examples.source}
    with tempfile.TemporaryDirectory() as folder:
        path = built(options, run, folder)
        with Engine.load(
            path, device="cpu", batch_size=options.batch_size, threads=cores, contexts=options.contexts
        ) as engine:
            result |= {"backend": engine.backend, "device": engine.device, "precision": engine.manifest.precision}
            result |= {"threads_of_an_operator": cores, "contexts": options.contexts}
            parts: dict[str, Callable[[], dict[str, Any]]] = {
                "answers": lambda: answers_against_torch(engine, run, examples.take(options.max_eval_samples)),
                "throughput": lambda: throughput(
                    engine, checkpoint, items[: options.rows], options.pipeline_batch_sizes, options.rounds
                ),
                "concurrency": lambda: concurrency(
                    engine,
                    items,
                    options.threads,
                    options.requests,
                    options.concurrent,
                    options.rounds,
                    options.tolerance,
                ),
            }
            items = items_of(examples)
            for name, part in parts.items():
                started = time.perf_counter()
                result[name] = part()
                result[name]["took_seconds"] = round(time.perf_counter() - started, 1)
                print(name, result[name], flush=True)
    files.write_json(options.output_dir / f"{options.name}.json", {**result, "provenance": provenance(sys.argv)})


if __name__ == "__main__":
    main()
