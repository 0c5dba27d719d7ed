"""Measure the cost of INT8 for an embedding model on the CPU: Spearman of cosines, distance to FP32, shared neighbors, by recipe.

    python benchmarks/embedding_figures.py minilm --validation_file glue/STS-B/dev.tsv --name embeddings-minilm

For each recipe the model is quantized by `q8trt.quantize` without a label, calibrated on the built-in sentences or `--texts`,
and with `--distill` trained by the float model. The exported ONNX graph runs on ONNX Runtime. The pairs with their similarity
only score it. Figures go to benchmarks/results/NAME.json; the score of sentence-transformers is taken where it is installed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
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
from q8trt.tasks.data import Features, load_dev, tokenize
from q8trt.tasks.metrics import compute_from_logits, cosines, nearest_shared

RESULTS = Path(__file__).parent / "results"


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

    from q8trt.tasks.data import DataConfig

    data = load_dev(DataConfig("custom", train_file=path, validation_file=path))["dev"]
    encoder = SentenceTransformer(local_folder(model), device="cpu")
    first, second = encoder.encode(data.first), encoder.encode(data.second)  # type: ignore[union-attr]
    return 100 * float(stats.spearmanr(cosines(first, second), data.labels)[0])


def main() -> None:
    """Quantize with each recipe, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--validation_file", required=True)
    parser.add_argument("--texts")
    parser.add_argument("--recipes", nargs="+", default=["gpu", "linear", "full"])
    parser.add_argument("--distill", type=float, default=0.0)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    result: dict[str, Any] = {"model": options.model, "validation_file": Path(options.validation_file).name, "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        fp32 = np.empty(0)
        for recipe in options.recipes:
            started = time.perf_counter()
            run = q8trt.quantize(
                options.model, validation_file=options.validation_file, texts=options.texts, recipe=recipe,
                distill=options.distill, build_engines=False, output_dir=Path(folder) / recipe,
            ).run  # fmt: skip
            seconds = time.perf_counter() - started
            data = config_of_run(run).data
            tokenizer, length = load_tokenizer(str(run.path / "fp32")), data.max_seq_length
            rows = tokenize(load_dev(data)["dev"], tokenizer, length)
            if not fp32.size:
                model = checkpoints.load_finetuned(run.path / "fp32", data.resolved_task)
                fp32 = exported(model, "fp32", tokenizer, rows, length)
                result["texts"] = len(rows)
                result["rows"]["fp32"] = figures(rows, fp32, fp32)
            quantized = checkpoints.load_quantized(run.best_quantized() or run.path)[0]
            vectors = exported(quantized, "int8", tokenizer, rows, length)
            name = f"{recipe}, {'distilled' if options.distill else 'calibrated'}"
            result["rows"][name] = {**figures(rows, vectors, fp32), "quantize_seconds": round(seconds, 1)}
            print(name, result["rows"][name], flush=True)
    result["sentence_transformers_spearman_x100"] = score_of_sentence_transformers(
        options.model, options.validation_file
    )
    print(result)
    files.write_json(RESULTS / f"{options.name}.json", {**result, "provenance": provenance(sys.argv)})


if __name__ == "__main__":
    main()
