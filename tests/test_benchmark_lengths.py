"""Length buckets against fixed length: the same rows, turns taken, and a ratio that padding alone explains."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from q8trt.runtime.base import Runner
from q8trt.runtime.timing.lengths import evenly_spaced, evenly_spaced_batches, measure_lengths
from q8trt.runtime.torch_runner import TORCH
from q8trt.tasks.data import Features
from q8trt.tasks.glue import get_task

LENGTHS = (10, 40, 12, 20, 64, 8, 30, 16)


class PerToken(Runner):
    """Takes `cost` seconds a padded token, on a clock of its own."""

    runtime, device, precision = TORCH, "cpu", "fp32"
    input_names = ("input_ids", "attention_mask")

    def __init__(self, cost: float, calls: list[tuple[float, tuple[int, ...], int]], clock: list[float]) -> None:
        self.cost, self.calls, self.clock = cost, calls, clock

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        shape = self.checked(arrays)["input_ids"].shape
        self.calls.append((self.cost, shape, int(arrays["attention_mask"].sum())))
        self.clock[0] += self.cost * shape[0] * shape[1]
        return np.zeros((shape[0], 1), np.float32)


def features(lengths: tuple[int, ...] = LENGTHS) -> Features:
    ids = [[row + 1] * length for row, length in enumerate(lengths)]
    labels = np.arange(len(lengths), dtype=np.float32)
    return Features(
        task=get_task("STS-B"), split="dev", source="test", is_sample=False, input_ids=ids, token_type_ids=None,
        labels=labels,
    )  # fmt: skip


def run(costs: tuple[float, ...] = (0.001,), **changes: object) -> tuple[list, list]:  # type: ignore[type-arg]
    calls: list[tuple[float, tuple[int, ...], int]] = []
    clock = [0.0]
    runners = [PerToken(cost, calls, clock) for cost in costs]
    options = {"batch_size": 2, "buckets": (16, 32), "max_seconds": 1e6, "clock": lambda: clock[0], **changes}
    return measure_lengths(runners, features(), 0, 64, **options), calls  # type: ignore[arg-type]


def test_rates_and_ratio_by_hand() -> None:
    (found,), _ = run()
    # Sorted 8 10 | 12 16 | 20 30 | 40 64: two rows each of 16, 16, 32 and 64 tokens; fixed: eight rows of 64.
    bucketed, fixed = 2 * (16 + 16 + 32 + 64) * 0.001, 8 * 64 * 0.001
    assert found.bucket_samples_per_s == pytest.approx(8 / bucketed)
    assert found.fixed_samples_per_s == pytest.approx(8 / fixed)
    assert found.ratio == pytest.approx(2.0)
    assert (found.rows, found.batch_size, found.buckets, found.fixed) == (8, 2, (16, 32, 64), 64)
    assert found.mean_tokens == pytest.approx(25.0)


def test_runners_and_kinds_take_turns_over_the_same_rows() -> None:
    found, calls = run((0.001, 0.002))
    timed = calls[-4 * 4 :]  # four batches, of two kinds, on two runners
    for start in range(0, 16, 4):
        assert {cost for cost, _, _ in timed[start : start + 4]} == {0.001, 0.002}
        assert sum(shape == (2, 64) for _, shape, _ in timed[start : start + 4]) in (2, 4)
    assert [timed[start][0] for start in range(0, 16, 4)] == [0.001, 0.002, 0.001, 0.002]  # each goes first in turn
    for cost in (0.001, 0.002):
        tokens = sorted(real for each, shape, real in timed if each == cost)
        assert sum(tokens) == 2 * sum(LENGTHS)  # every row twice: with buckets and without
    assert found[0].ratio == pytest.approx(found[1].ratio)
    assert found[0].fixed_samples_per_s == pytest.approx(2 * found[1].fixed_samples_per_s)


def test_every_shape_is_warmed_before_it_is_timed() -> None:
    _, calls = run()
    before = [shape for _, shape, _ in calls[:-8]]
    assert {(2, 16), (2, 32), (2, 64)} <= set(before)


def test_evenly_spaced_batches_stand_for_a_set_that_would_take_too_long() -> None:
    # A batch of 2 x 64 takes 0.128 s, and twice that with buckets: 0.6 s pay for two batches.
    rows: list[int] = []
    (found,), calls = run(max_seconds=0.6, on_progress=rows.append)
    assert found.rows == 4
    assert sum(rows) == 8
    assert {shape for _, shape, _ in calls[-4:]} == {(2, 16), (2, 64)}  # short rows and long ones, not mixed
    assert found.ratio == pytest.approx(2 * 64 / (16 + 64))


def test_which_rows_are_kept() -> None:
    kept = evenly_spaced(features(), 4)
    assert kept.lengths.tolist() == [10, 12, 8, 16]
    assert kept.labels is not None
    assert kept.labels.tolist() == [0, 2, 5, 7]
    assert evenly_spaced(features(), 9).lengths.tolist() == list(LENGTHS)
    # Sorted: 8 10 12 | 16 20 30 | 40 64.
    assert evenly_spaced_batches(features(), 3, 2).lengths.tolist() == [8, 10, 12, 40, 64]
    assert evenly_spaced_batches(features(), 3, 1).lengths.tolist() == [16, 20, 30]
    assert evenly_spaced_batches(features(), 2, 2).lengths.tolist() == [12, 16, 40, 64]
    assert evenly_spaced_batches(features(), 3, 3).lengths.tolist() == list(LENGTHS)
