"""Engines to score files with: a stand-in that computes nothing, and a real one that is tiny."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from q8trt.app.answers import Answer
from q8trt.app.batching import Limits
from q8trt.engine.manifest import MANIFEST_FILE, Manifest, ModelInfo, TaskInfo, write_manifest

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "runs", "sleeps", "plane", "takes")
LABELS = ("no", "maybe", "yes")


def manifest(
    labels: Sequence[str] = (), is_pair: bool = True, name: str = "mine", columns: Sequence[str] = ()
) -> Manifest:
    return Manifest(
        task=TaskInfo(name, [*labels], not labels, is_pair, "pearson" if not labels else "accuracy", [*columns]),
        model=ModelInfo("tiny", "bert", len(labels) or 1, 64, 0, 16),
        precision="int8",
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
    limits: Limits = field(default_factory=lambda: Limits(16, (8, 16), 32))
    backend: str = "stand-in"
    device: str = "cpu"
    truncated: int = 0
    calls: int = 0
    fail_at: int = 0
    error: BaseException = field(default_factory=KeyboardInterrupt)

    def __post_init__(self) -> None:
        (self.folder / MANIFEST_FILE).write_text("{}")

    def predict(self, items: Sequence[Any]) -> list[Any]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.error
        self.truncated += sum(len(item[0]) > 20 for item in items)
        values = [len("".join(item)) + len(items) / 1000 for item in items]
        if self.manifest.task.is_regression:
            return values
        share = 1 / len(self.manifest.task.labels)
        return [Answer(self.manifest.task.labels[-1], dict.fromkeys(self.manifest.task.labels, share)) for _ in values]


def write_real_engine(folder: Path, labels: Sequence[str] = (), is_pair: bool = True) -> Path:
    """An engine folder for ONNX Runtime: `tiny_onnx` summed over the sequence, and a tokenizer of 11 words."""
    from engine_fixtures import tiny_onnx
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True)
    tiny_onnx(folder / "model.onnx", operator="ReduceSum")
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
    """What the real engine computes for one example, in NumPy."""
    import numpy as np
    from engine_fixtures import SCALE, TABLE, WEIGHT

    ids = [2]
    for text in texts:
        ids += [WORDS.index(word) if word in WORDS else 1 for word in text.split()] + [3]
    quantized = np.clip(np.rint(TABLE[ids] / SCALE), -128, 127) * SCALE
    return (quantized @ (WEIGHT * SCALE)).sum(0)
