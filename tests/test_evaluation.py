"""Scoring: every batch fits, rows come back in order, metrics are those of SciPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import pearsonr

from q8trt.engine.folder import EngineFolder
from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import DataError
from q8trt.evaluation.data import Batching
from q8trt.runtime.base import Runner
from q8trt.runtime.scores import evaluate, predict
from q8trt.runtime.torch_runner import TORCH
from q8trt.tasks.data import DataConfig, Features
from q8trt.tasks.glue import get_task

STS_B = get_task("STS-B")
LENGTHS = (3, 40, 17, 9, 16, 33, 40, 5, 28)


class Summing(Runner):
    """Logit = sum of the unpadded token ids; remembers the shapes that it was given."""

    runtime, device, precision = TORCH, "cpu", "fp32"
    input_names = ("input_ids", "attention_mask")

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        batch = self.checked(arrays)
        self.shapes.append(batch["input_ids"].shape)
        return (batch["input_ids"] * batch["attention_mask"]).sum(axis=1, keepdims=True).astype(np.float32)


def features(labels: bool = True) -> Features:
    ids = [[row + 1] * length for row, length in enumerate(LENGTHS)]
    scores = np.linspace(0, 5, len(LENGTHS), dtype=np.float32) if labels else None
    return Features(
        task=STS_B, split="dev", source="test", is_sample=False, input_ids=ids, token_type_ids=None, labels=scores
    )


def test_rows_come_back_in_order_and_padding_is_masked() -> None:
    logits, seconds = predict(Summing(), features(), pad_token_id=7, max_length=40, batch_size=2)
    np.testing.assert_array_equal(logits[:, 0], [(row + 1) * length for row, length in enumerate(LENGTHS)])
    assert seconds > 0


@pytest.mark.parametrize("max_length", [40, 48])
def test_no_batch_is_longer_or_larger_than_allowed(max_length: int) -> None:
    runner = Summing()
    predict(runner, features(), pad_token_id=0, max_length=max_length, batch_size=4)
    assert max(batch for batch, _ in runner.shapes) == 4
    assert {length for _, length in runner.shapes} <= {16, 32, max_length}
    assert max(length for _, length in runner.shapes) == max_length


def test_metrics_are_scipys() -> None:
    rows, advanced = features(), []
    result = evaluate(Summing(), rows, 0, 40, batch_size=4, on_progress=advanced.append)
    expected = pearsonr([(row + 1) * length for row, length in enumerate(LENGTHS)], rows.labels).statistic
    assert result.metrics["pearson"] == pytest.approx(expected, abs=1e-6)
    assert sum(advanced) == len(LENGTHS)


def test_rows_without_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"^dev has no labels, so nothing can be scored on it$"):
        evaluate(Summing(), features(labels=False), 0, 40)


def engine(tmp_path, largest: tuple[int, int] | None) -> EngineFolder:
    profiles = [ShapeProfile((1, 1), (1, 1), largest)] if largest else []
    manifest = Manifest(
        TaskInfo("STS-B", [], True, True, "pearson"), ModelInfo("tiny", "bert", 1, 64, 0, 128), "fp32", None,
        ["input_ids"], 20, profiles=profiles,
    )  # fmt: skip
    return EngineFolder(tmp_path, manifest)


def test_scoring_keeps_within_every_plan(tmp_path) -> None:
    data = DataConfig("STS-B", sample=True, max_seq_length=128)

    def limits(engines: list[EngineFolder], batch_size: int) -> tuple[int, int]:
        batching = Batching.of(engines, data, batch_size, (128,))
        return batching.batch_size, batching.max_length

    assert limits([engine(tmp_path, None)], 32) == (32, 128)
    assert limits([engine(tmp_path, (8, 256)), engine(tmp_path, (64, 64))], 32) == (8, 64)
    assert limits([engine(tmp_path, (8, 256))], 4) == (4, 128)
