"""Measure the cost of INT8 for an embedding model on the CPU: Spearman of cosines, distance to FP32, shared neighbors, by recipe.

    python benchmarks/embedding_figures.py minilm --texts glue/STS-B/train.tsv --validation_file glue/STS-B/dev.tsv \\
        --name embeddings-minilm

For each recipe the model is quantized by `q8trt.quantize` without a label, calibrated on the built-in sentences or `--texts`,
and with `--distill` trained by the float model. The exported ONNX graph runs on ONNX Runtime. The pairs with their similarity
only score it. Each row goes to benchmarks/results/NAME.json as soon as it is known, and a row that is there is not taken
again. The score of sentence-transformers is taken where it is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import q8trt
from q8trt import files
from q8trt.export.onnx import export_onnx
from q8trt.hardware.provenance import provenance
from q8trt.models import checkpoints, load_tokenizer, local_folder, model_inputs
from q8trt.quantization.precision import Precision
from q8trt.runs.config import config_of_run
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.runtime.scores import predict
from q8trt.tasks.data import DataConfig, Features, load_dev, tokenize
from q8trt.tasks.metrics import compute_from_logits, cosines, nearest_shared

RESULTS = Path(__file__).parent / "results"
#: Rows that `q8trt.quantize` scores by torch on its way: few, because the exported graph is scored on all of them here.
SCORED_ON_THE_WAY = 64


def exported(model: Any, precision: str, tokenizer: Any, rows: Features, length: int) -> np.ndarray:
    """Return the embeddings of `rows` by the exported graph, (rows, dimension) float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, Path(folder) / "model.onnx", precision, model_inputs(tokenizer)).path
        with OnnxRuntimeRunner(path, Precision(precision)) as runner:
            return predict(runner, rows, tokenizer.pad_token_id, length)[0]


def figures(rows: Features, vectors: np.ndarray, fp32: np.ndarray) -> dict[str, float]:
    """Return the score and the distances to FP32 of embeddings."""
    similarity = cosines(vectors, fp32)
    return {
        "spearman_x100": 100 * compute_from_logits(rows.task, vectors, np.asarray(rows.labels))["spearman"],
        "cosine_to_fp32_mean": float(similarity.mean()),
        "cosine_to_fp32_p1": float(np.percentile(similarity, 1)),
        "cosine_to_fp32_worst": float(similarity.min()),
        "neighbors_10_shared": nearest_shared(vectors, fp32),
    }


def score_of_sentence_transformers(model: str, path: str) -> float | None:
    """Return Spearman x100 of sentence-transformers' own embeddings of a file's pairs; None where it is not installed."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    from scipy import stats

    data = load_dev(DataConfig("custom", train_file=path, validation_file=path))["dev"]
    encoder = SentenceTransformer(local_folder(model), device="cpu")
    first, second = encoder.encode(data.first), encoder.encode(data.second)  # type: ignore[union-attr]
    return 100 * float(stats.spearmanr(cosines(first, second), data.labels)[0])


@dataclass(frozen=True)
class Settings:
    """One model, the texts it is calibrated on, the pairs that score it, and the epochs of distillation."""

    model: str
    validation_file: str
    texts: str | None = None
    distill: float = 0.0
    calibration_samples: int = 512

    def row_name(self, recipe: str) -> str:
        """Return the name of a recipe's row."""
        return f"{recipe}, distilled {self.distill:g} epochs" if self.distill else f"{recipe}, calibrated"

    def rows(self, run: Any) -> tuple[Any, Features]:
        """Return the tokenizer of a run, and all pairs as texts."""
        data = config_of_run(run).data
        every = DataConfig("custom", validation_file=self.validation_file, head=data.head)
        tokenizer = load_tokenizer(str(run.path / "fp32"))
        return tokenizer, tokenize(load_dev(every)["dev"], tokenizer, data.max_seq_length)

    def quantize(self, recipe: str, folder: Path) -> tuple[Any, float]:
        """Return the run that quantizes the model by `recipe`, and the seconds that it took."""
        started = time.perf_counter()
        run = q8trt.quantize(
            self.model, validation_file=self.validation_file, texts=self.texts, recipe=recipe, distill=self.distill,
            calibration_samples=self.calibration_samples, max_eval_samples=SCORED_ON_THE_WAY, build_engines=False,
            output_dir=folder,
        ).run  # fmt: skip
        return run, round(time.perf_counter() - started, 1)


def main() -> None:
    """Quantize with each recipe, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--texts")
    parser.add_argument("--recipes", nargs="+", default=["gpu", "linear", "full"])
    parser.add_argument("--distill", type=float, default=0.0)
    parser.add_argument("--calibration_samples", type=int, default=512)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    settings = Settings(
        options.model, options.validation_file, options.texts, options.distill, options.calibration_samples
    )
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    result = {
        "model": Path(options.model).name,
        "validation_file": Path(options.validation_file).name,
        "texts_file": Path(options.texts).name if options.texts else "built-in sentences",
        "rows": {},
        **result,
    }

    def store(name: str, row: Any) -> None:
        result["rows"][name] = row
        print(name, row, flush=True)
        files.write_json(path, {**result, "provenance": provenance(sys.argv)})

    fp32 = np.empty(0)
    for recipe in options.recipes:
        name = settings.row_name(recipe)
        if name in result["rows"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            run, seconds = settings.quantize(recipe, Path(folder) / "run")
            (tokenizer, rows), data = settings.rows(run), config_of_run(run).data
            if not fp32.size:
                model = checkpoints.load_finetuned(run.path / "fp32", data.resolved_task)
                fp32 = exported(model, "fp32", tokenizer, rows, data.max_seq_length)
                result["texts"] = len(rows)
                store("fp32", figures(rows, fp32, fp32))
            quantized = checkpoints.load_quantized(run.best_quantized() or run.path)[0]
            vectors = exported(quantized, "int8", tokenizer, rows, data.max_seq_length)
            trials = [{"settings": trial.settings, "drift": trial.drift} for trial in run.trials]
            store(name, {**figures(rows, vectors, fp32), "quantize_seconds": seconds, "trials": trials})
    if "sentence_transformers_spearman_x100" not in result:
        score = score_of_sentence_transformers(options.model, options.validation_file)
        if score is not None:
            result["sentence_transformers_spearman_x100"] = score
            store("fp32", result["rows"]["fp32"])


if __name__ == "__main__":
    main()
