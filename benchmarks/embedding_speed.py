"""Time embeddings a second on the CPU: engines of q8trt against sentence-transformers' backends, in turns.

    python benchmarks/embedding_speed.py runs/NAME --model minilm --texts glue/STS-B/dev.tsv --name embedding-speed-minilm

`runs/NAME` is a run of `q8trt quantize` whose engine folders are built. Each contender is a process that embeds all texts once a
round; the rounds are interleaved, and the first one warms up. `--st_python` is the interpreter of an environment with
`sentence-transformers[onnx]`, whose pins may differ from q8trt's. A contender that cannot start is left out, with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BATCH_SIZE = 32
#: Contender -> backend of sentence-transformers; "onnx-int8" is its own dynamic quantization for AVX-512 VNNI.
BACKENDS = {"sentence-transformers torch": "torch", "sentence-transformers onnx": "onnx",
            "sentence-transformers onnx-int8": "onnx-int8"}  # fmt: skip


def engine_encoder(folder: str, threads: int) -> Callable[[list[str]], Any]:
    """Return the function that embeds texts by an engine folder on ONNX Runtime."""
    from q8trt import Engine

    return Engine.load(folder, device="cpu", threads=threads, batch_size=BATCH_SIZE, contexts=1).embed


def sentence_transformers_encoder(model: str, backend: str, threads: int) -> Callable[[list[str]], Any]:
    """Return the function that embeds texts by a backend of sentence-transformers."""
    import tempfile

    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    if backend == "torch":
        encoder = SentenceTransformer(model, device="cpu")
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = {"provider": "CPUExecutionProvider", "session_options": options}
        encoder = SentenceTransformer(model, device="cpu", backend="onnx", model_kwargs={**provider, "export": True})
        if backend == "onnx-int8":
            from sentence_transformers import export_dynamic_quantized_onnx_model

            folder = tempfile.mkdtemp()
            encoder.save_pretrained(folder)
            export_dynamic_quantized_onnx_model(encoder, "avx512_vnni", folder)
            name = "onnx/model_qint8_avx512_vnni.onnx"
            encoder = SentenceTransformer(
                folder, device="cpu", backend="onnx", model_kwargs={**provider, "file_name": name}
            )
    return lambda texts: encoder.encode(texts, batch_size=BATCH_SIZE, show_progress_bar=False)


def work(options: argparse.Namespace) -> None:
    """Embed the texts once for each line on stdin, and write the seconds."""
    texts = json.loads(Path(options.worker_texts).read_text())
    started = time.perf_counter()
    if options.worker in BACKENDS:
        encode = sentence_transformers_encoder(options.model, BACKENDS[options.worker], options.threads)
    else:
        encode = engine_encoder(options.worker, options.threads)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout
    print(json.dumps({"start_s": time.perf_counter() - started}), file=output, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        vectors = encode(texts)
        print(json.dumps({"s": time.perf_counter() - started, "shape": list(vectors.shape)}), file=output, flush=True)


class Contender:
    """A process that embeds the texts when it is asked to."""

    def __init__(self, python: str, worker: str, options: argparse.Namespace, texts: Path) -> None:
        command = [python, __file__, options.run, "--model", options.model, "--texts", options.texts]
        command += ["--threads", str(options.threads), "--worker", worker, "--worker_texts", str(texts)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.seconds: list[float] = []
        self.error = "" if self._answer() else self._last_words()

    def round(self) -> None:
        """Embed all texts once."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer is None:
            self.error = self._last_words()
        else:
            self.seconds.append(answer["s"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _last_words(self) -> str:
        lines = self._process.communicate()[1].strip().splitlines()
        return lines[-1][:300] if lines else f"exit code {self._process.returncode}"


def read_texts(path: str) -> list[str]:
    """Return both columns of a file of pairs, or the lines of a text file."""
    from q8trt.tasks.data import DataConfig, Examples, load_dev

    rows = load_dev(DataConfig("custom", train_file=path, validation_file=path))["dev"]
    assert isinstance(rows, Examples)
    return [*rows.first, *(rows.second or ())]


def versions(python: str) -> dict[str, str]:
    """Return the versions of what sentence-transformers needs, as far as an interpreter has it."""
    code = """if True:
        import importlib.metadata, json
        versions = {}
        for name in ("sentence-transformers", "transformers", "optimum-onnx", "onnxruntime", "torch"):
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                pass
        print(json.dumps(versions))
    """
    return dict(json.loads(subprocess.check_output([python, "-c", code], text=True)))


def main() -> None:
    """Time all contenders and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--model", required=True, help="folder of sentence-transformers")
    parser.add_argument("--texts", required=True)
    parser.add_argument("--engines", nargs="+", default=["engine-fp32", "engine-ptq"])
    parser.add_argument("--st_python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--worker_texts", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    import tempfile

    from q8trt import files
    from q8trt.hardware.provenance import provenance
    from q8trt.models import local_folder

    options.model = local_folder(options.model)
    texts = read_texts(options.texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts))
        names = {f"q8trt {name}": str(Path(options.run) / name) for name in options.engines}
        contenders = {name: Contender(sys.executable, worker, options, path) for name, worker in names.items()}
        contenders |= {name: Contender(options.st_python, name, options, path) for name in BACKENDS}
        for _ in range(options.rounds + 1):
            for contender in contenders.values():
                if not contender.error:
                    contender.round()
        for contender in contenders.values():
            contender.close()
    rows: dict[str, Any] = {}
    for name, contender in contenders.items():
        if contender.error:
            rows[name] = {"error": contender.error}
            continue
        seconds = contender.seconds[1:]
        median = statistics.median(seconds)
        rows[name] = {"texts_per_s": len(texts) / median, "seconds": [round(each, 3) for each in seconds]}
    first = next(row["texts_per_s"] for row in rows.values() if "texts_per_s" in row)
    for name, row in rows.items():
        ratio = (
            f"{row['texts_per_s']:8.1f} texts/s  {row['texts_per_s'] / first:.2f}x"
            if "seconds" in row
            else row["error"]
        )
        print(f"{name:35} {ratio}")
    if options.name:
        figures = {
            "texts": len(texts), "batch_size": BATCH_SIZE, "threads": options.threads, "rows": rows,
            "versions_of_sentence_transformers": versions(options.st_python),
            "includes": "tokenizer, model and pooling; rounds interleaved, median", "provenance": provenance(sys.argv),
        }  # fmt: skip
        files.write_json(RESULTS / f"{options.name}.json", figures)
    return None


if __name__ == "__main__":
    main()
