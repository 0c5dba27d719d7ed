"""Engines to score files with: a stand-in that computes nothing, and a real one that is tiny."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.manifest import MANIFEST_FILE, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.errors import InterruptedRunError
from q8trt.inference.batching import BatchLimits
from q8trt.inference.files import ScoringConfig, Summary, job, score_file
from q8trt.quantization.precision import Precision

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "runs", "sleeps", "plane", "takes")
LABELS = ("no", "maybe", "yes")


def manifest(
    labels: Sequence[str] = (), is_pair: bool = True, name: str = "mine", columns: Sequence[str] = ()
) -> Manifest:
    return Manifest(
        task=TaskInfo(name, [*labels], not labels, is_pair, "pearson" if not labels else "accuracy", [*columns]),
        model=ModelInfo("tiny", "bert", len(labels) or 1, 64, 0, 16),
        precision=Precision.INT8,
        recipe=None,
        inputs=["input_ids", "attention_mask"],
        opset=20,
    )


@dataclass
class StandIn:
    """Answers with the number of characters of the texts, and of rows that came together: both show in the output.

    `fail_at` is the number of the call that raises `error`, from 1.
    """

    folder: Path
    manifest: Manifest = field(default_factory=manifest)
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(16, (8, 16), 32))
    cut_length: int = 16
    backend: str = "stand-in"
    device: str = "cpu"
    truncated: int = 0
    calls: int = 0
    fail_at: int = 0
    error: BaseException = field(default_factory=KeyboardInterrupt)

    def __post_init__(self) -> None:
        (self.folder / MANIFEST_FILE).write_text("{}")

    def logits(self, items: Sequence[Any]) -> np.ndarray:
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error
        self.truncated += sum(len(item[0]) > 20 for item in items)
        if self.manifest.task.is_regression:
            return np.float32([[len("".join(item)) + len(items) / 1000] for item in items]).reshape(-1, 1)
        row = [0.0] * (len(self.manifest.task.labels) - 1) + [1e-9]  # the last label, by a hair
        return np.tile(np.float32(row), (len(items), 1))


def write_real_engine(folder: Path, labels: Sequence[str] = (), is_pair: bool = True) -> Path:
    """An engine folder for ONNX Runtime: `tiny_onnx` summed over the sequence, and a tokenizer of 11 words."""
    from engine_fixtures import tiny_onnx
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True)
    tiny_onnx(folder / "model.onnx", operator="ReduceSum", labels=len(labels) or 1)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "right"}))
    columns = ("sentence1", "sentence2") if is_pair else ("sentence",)
    write_manifest(folder, manifest(labels, is_pair, columns=columns))
    return folder


def real_logits(*texts: str) -> Any:
    """Return the real engine's logits for one example, computed in NumPy."""
    import numpy as np
    from engine_fixtures import SCALE, TABLE, WEIGHT

    ids = [2]
    for text in texts:
        ids += [WORDS.index(word) if word in WORDS else 1 for word in text.split()] + [3]
    quantized = np.clip(np.rint(TABLE[ids] / SCALE), -128, 127) * SCALE
    return (quantized @ (WEIGHT * SCALE)).sum(0)


#: The modules that write a job's files; a job may be killed at each of their lines.
_WRITERS = ("scoring/outputs.py", "scoring/journal.py", "files/atomic.py", "files/locks.py")


def forked(work: Callable[[], object], kill_at: int = 0) -> int:
    """Run `work` in a fork; returns how many lines of the modules that write it ran, 0 if it was killed.

    The fork kills itself before line `kill_at`, counted from 1: nothing is tidied up.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        lines = 0

        def traced(frame: Any, event: str, _: Any) -> Any:
            nonlocal lines
            if not frame.f_code.co_filename.endswith(_WRITERS):
                return None
            if event == "line":
                lines += 1
                if lines == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return traced

        try:
            sys.settrace(traced)
            work()
        finally:
            sys.settrace(None)
            os.write(writer, str(lines).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return int(text or 0)


#: Quoted newlines, blank lines and bad rows at many places of a chunk.
ROWS = "sentence1,sentence2,id\n" + "".join(
    f'"a{"b" * (number % 5 * 8)}\nc",d,{number}\n' if number % 3 else f"a,{'b' * (number % 4)},{number}\n\n"
    for number in range(40)
)


class Job:
    """A job of the stand-in in a folder: ``in.csv`` -> ``out.csv``, 4 rows a chunk, each noted."""

    def __init__(self, folder: Path, text: str = ROWS) -> None:
        self.folder, self.source = folder, folder / "in.csv"
        (folder / "engine").mkdir(parents=True, exist_ok=True)
        StandIn(folder / "engine")
        if not self.source.exists():
            self.source.write_text(text)

    def run(self, output: str = "out.csv", stop_at: int = 0, **options: Any) -> Summary:
        """Score; Ctrl-C comes at chunk `stop_at`."""
        job._NOTE_SECONDS = 0.0
        engine = StandIn(self.folder / "engine", fail_at=stop_at)
        config = ScoringConfig(self.source, self.folder / output, **{"chunk_rows": 4, **options})
        return score_file(engine, config)  # type: ignore[arg-type]

    def stop(self, at: int = 6, **options: Any) -> None:
        """Leave an unfinished job."""
        with contextlib.suppress(InterruptedRunError):
            self.run(stop_at=at, **options)
        assert self.path(".state.json").is_file()

    def path(self, ending: str = "") -> Path:
        return self.folder / f"out.csv{ending}"

    def results(self, output: str = "out.csv") -> tuple[bytes, bytes]:
        return (self.folder / output).read_bytes(), (self.folder / f"{output}.rejected.csv").read_bytes()
