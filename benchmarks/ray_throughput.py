"""Measure the scoring of rows on Ray Data: one and two workers of one thread each, and their answers beside `q8trt predict`.

    python benchmarks/ray_throughput.py runs/NAME/engine-ptq --texts glue/STS-B/train.tsv --rows 100000 --name ray-minilm

The engine is one of an embedding model. The rows are the texts, repeated in a random order until they are `--rows`. Ray reads
them from ten Parquet files and writes the answers as Parquet. The clock runs from the first row read to the last one written,
with the start of the actors, without that of Ray. Answers are compared bit for bit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from q8trt import files
from q8trt.hardware.provenance import provenance
from q8trt.inference.ray_data import score

RESULTS = Path(__file__).parent / "results"
FILES = 10


def write_rows(path: str, count: int, folder: Path) -> None:
    """Write `count` rows as Parquet files for Ray, and as JSON Lines for `q8trt predict`."""
    from embedding_speed import read_texts

    texts = sorted(set(read_texts(path)))
    chosen = np.random.default_rng(0).integers(len(texts), size=count)
    table = pyarrow.table({"id": np.arange(count), "text": [texts[index] for index in chosen]})
    (folder / "rows").mkdir()
    for index, part in enumerate(np.array_split(np.arange(count), FILES)):
        parquet.write_table(table.slice(part[0], len(part)), folder / "rows" / f"{index:03d}.parquet")
    table.to_pandas().to_json(folder / "rows.jsonl", orient="records", lines=True)


def ray_answers(engine: str, folder: Path, workers: int) -> tuple[pyarrow.Table, float]:
    """Return the answers of `workers` actors, by id, and the seconds that they took."""
    import ray

    output = folder / f"answers-{workers}"
    started = time.perf_counter()
    rows = ray.data.read_parquet(str(folder / "rows"))
    score(rows, engine, workers=workers, threads=1, device="cpu").write_parquet(str(output))
    return parquet.read_table(output).sort_by("id"), time.perf_counter() - started


def predict_answers(engine: str, folder: Path) -> tuple[pyarrow.Table, float]:
    """Return the answers of `q8trt predict`, and the seconds that it took."""
    output = folder / "answers.parquet"
    command = [sys.executable, "-m", "q8trt", "predict", "--engine", engine, "--device", "cpu"]
    started = time.perf_counter()
    subprocess.run([*command, "--input", folder / "rows.jsonl", "--output", output], check=True, capture_output=True)
    return parquet.read_table(output), time.perf_counter() - started


def vectors(answers: pyarrow.Table) -> np.ndarray:
    """Return the embeddings of a table, (rows, dimension) float32."""
    column = answers["embedding"].combine_chunks()
    return np.asarray(column.values, np.float32).reshape(len(answers), -1)


def main() -> None:
    """Score the rows three ways, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    parser.add_argument("--texts", required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    import ray

    engine = str(Path(options.engine).resolve())
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(options.texts, options.rows, folder)
        expected, seconds = predict_answers(engine, folder)
        figures["predict"] = {"seconds": seconds, "rows_per_s": options.rows / seconds}
        print("predict", figures["predict"], flush=True)
        ray.init(
            num_cpus=4, include_dashboard=False, log_to_driver=False
        )  # a CPU for each actor, and two to read and write
        for workers in (1, 2):
            answers, seconds = ray_answers(engine, folder, workers)
            figures[f"workers_{workers}"] = {
                "seconds": seconds,
                "rows_per_s": options.rows / seconds,
                "rejected": options.rows - answers["rejected"].null_count,
                "identical_to_predict": bool(
                    answers["id"].to_pylist() == list(range(options.rows))
                    and answers["text"].to_pylist() == [str(text) for text in expected["text"].to_pylist()]
                    and np.array_equal(vectors(answers), vectors(expected))
                ),
            }
            print(workers, figures[f"workers_{workers}"], flush=True)
    figures["speedup"] = figures["workers_2"]["rows_per_s"] / figures["workers_1"]["rows_per_s"]
    path = RESULTS / f"{options.name}.json"
    files.write_json(path, {"rows": options.rows, **figures, "provenance": provenance(sys.argv)})
    print(f"two workers: {figures['speedup']:.2f}x of one; {path}")


if __name__ == "__main__":
    main()
