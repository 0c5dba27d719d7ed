"""Small GLUE folders in words of the tiny vocabulary, and the options that make a run on them short."""

from __future__ import annotations

import random
from pathlib import Path

_WORDS = (
    "dog", "cat", "bird", "horse", "fish", "run", "walk", "sleep", "eat", "play",
    "red", "blue", "green", "small", "large", "house", "river", "street", "music", "home",
)  # fmt: skip
#: Options that every training run on the tiny model needs: its positions end at 64, and steps must be few.
SHORT = (
    "--max_seq_length", "32", "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8", "--use_cpu",
)  # fmt: skip


def _sentences(generator: random.Random) -> tuple[str, str, float]:
    """Two sentences of equal length, 2 to 9 words, and the share of words that they have in common."""
    length = generator.randint(2, 9)
    first = generator.sample(_WORDS, length)
    common = generator.randint(0, length)
    second = first[:common] + generator.sample([word for word in _WORDS if word not in first], length - common)
    generator.shuffle(second)
    return " ".join(first), " ".join(second), common / length


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]), encoding="utf-8")


def write_sts_b(folder: Path, train: int = 48, dev: int = 16) -> Path:
    """train.tsv and dev.tsv of STS-B with as many rows; returns `folder`."""
    generator = random.Random(0)
    for name, count in (("train.tsv", train), ("dev.tsv", dev)):
        rows = [(index, *_sentences(generator)) for index in range(count)]
        _write(folder / name, ("index", "sentence1", "sentence2", "score"), [(*r[:3], f"{5 * r[3]:.3f}") for r in rows])
    return folder


def write_mrpc(folder: Path, train: int = 48, dev: int = 16) -> Path:
    """train.tsv and dev.tsv of MRPC; returns `folder`."""
    generator = random.Random(1)
    for name, count in (("train.tsv", train), ("dev.tsv", dev)):
        rows = [_sentences(generator) for _ in range(count)]
        _write(folder / name, ("Quality", "#1 String", "#2 String"), [(int(s > 0.5), a, b) for a, b, s in rows])
    return folder


def write_mnli(folder: Path, train: int = 48, dev: int = 16) -> Path:
    """train.tsv and both development files of MNLI; returns `folder`."""
    generator = random.Random(2)
    labels = ("contradiction", "neutral", "entailment")
    for name, count in (("train.tsv", train), ("dev_matched.tsv", dev), ("dev_mismatched.tsv", dev)):
        rows = [_sentences(generator) for _ in range(count)]
        table = [(a, b, labels[min(int(3 * score), 2)]) for a, b, score in rows]
        _write(folder / name, ("sentence1", "sentence2", "gold_label"), table)
    return folder
