"""Timing: what is counted, in which order, and when it stops."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest

from q8trt.benchmarking import (
    WHAT_IS_TIMED,
    BenchmarkConfig,
    measure,
    parse_shapes_list,
    random_inputs,
    summarize,
)
from q8trt.errors import ConfigError, DataError
from q8trt.runners.base import Runner


class World:
    """A clock that only runners move, and the order in which they were called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now


class FakeRunner(Runner):
    backend, device, precision = "onnxruntime", "cpu", "fp32"
    input_names = ("input_ids",)

    def __init__(self, world: World, name: str, seconds: float | list[float]) -> None:
        self.world, self.name, self.seconds = world, name, seconds
        self.shapes: list[tuple[int, ...]] = []

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        took = self.seconds.pop(0) if isinstance(self.seconds, list) else self.seconds
        self.world.now += took
        self.world.calls.append(self.name)
        self.shapes.append(arrays["input_ids"].shape)
        return np.zeros((len(arrays["input_ids"]), 1), np.float32)


def make_inputs(batch: int, sequence: int) -> dict[str, np.ndarray]:
    return random_inputs(batch, sequence, vocab_size=10)


def config(**changes: object) -> BenchmarkConfig:
    return BenchmarkConfig(**{"shapes": ((1, 4),), "warmup": 0, "iterations": 4, **changes})  # type: ignore[arg-type]


def run(world: World, names: str, **changes: object) -> list[str]:
    """The rounds that `measure` ran, each as the runners' names in order."""
    measure([FakeRunner(world, name, 1.0) for name in names], config(**changes), make_inputs, clock=world.clock)
    return ["".join(world.calls[i : i + len(names)]) for i in range(0, len(world.calls), len(names))]


def test_summarize_by_hand() -> None:
    latency = summarize(16, 128, [0.004, 0.001, 0.003, 0.002, 0.010])
    assert (latency.batch, latency.sequence, latency.iterations, latency.shape) == (16, 128, 5, "16x128")
    assert latency.median_ms == pytest.approx(3.0)
    assert latency.mean_ms == pytest.approx(4.0)
    assert latency.min_ms == pytest.approx(1.0)
    assert latency.std_ms == pytest.approx(np.sqrt((9 + 4 + 1 + 0 + 36) / 5))
    # Linear: p90 of five values is 0.6 of the way from the fourth (4) to the fifth (10).
    assert latency.p90_ms == pytest.approx(7.6)
    assert latency.p95_ms == pytest.approx(8.8)
    assert latency.p99_ms == pytest.approx(9.76)
    assert latency.samples_per_s == pytest.approx(16 / 0.003)


def test_summarize_one_iteration() -> None:
    latency = summarize(1, 8, [0.5])
    assert (latency.median_ms, latency.p99_ms, latency.std_ms) == (500.0, 500.0, 0.0)


@pytest.mark.parametrize("seconds", [[], [0.1, 0.0], [0.1, -1.0], [float("nan")], [float("inf")]])
def test_summarize_refuses_what_is_no_time(seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="positive, finite seconds"):
        summarize(1, 8, seconds)


def test_two_runners_alternate() -> None:
    assert run(World(), "AB") == ["AB", "BA", "AB", "BA"]


def test_every_runner_takes_every_position_and_neighbour() -> None:
    rounds = run(World(), "ABC", iterations=6)
    assert len(set(rounds)) == 6  # all permutations of three
    followed = {"".join(pair) for order in rounds for pair in pairwise(order)}
    assert followed == {"AB", "AC", "BA", "BC", "CA", "CB"}


def test_warmup_is_not_counted() -> None:
    world = World()
    slow_start = FakeRunner(world, "A", [9.0, 9.0, 0.1, 0.2, 0.3, 0.4])
    steady = FakeRunner(world, "B", 0.5)
    first, second = measure([slow_start, steady], config(warmup=2, max_seconds=1e3), make_inputs, clock=world.clock)
    assert first[0].median_ms == pytest.approx(250.0)
    assert first[0].iterations == second[0].iterations == 4
    assert second[0].std_ms == pytest.approx(0.0, abs=1e-6)
    assert len(world.calls) == 2 * (2 + 4)


def test_each_shape_gets_its_own_figures() -> None:
    world = World()
    runner = FakeRunner(world, "A", [0.1] * 4 + [0.4] * 4)
    ((small, large),) = measure([runner], config(shapes=((1, 4), (2, 8))), make_inputs, clock=world.clock)
    assert runner.shapes == [(1, 4)] * 4 + [(2, 8)] * 4
    assert (small.shape, large.shape) == ("1x4", "2x8")
    assert large.samples_per_s == pytest.approx(5.0)
    assert small.median_ms == pytest.approx(100.0)


def test_max_seconds_ends_a_shape_with_equal_iterations() -> None:
    # Two runners of 1 s: a round is 2 s, so the fifth round is the last to start before 10 s.
    assert len(run(World(), "AB", iterations=100, max_seconds=9.5)) == 5


def test_max_seconds_leaves_time_after_the_warmup() -> None:
    # Warm-up stops at a quarter of 20 s (three rounds of 2 s), the rest is timed.
    rounds: list[int] = []
    world = World()
    runners = [FakeRunner(world, name, 1.0) for name in "AB"]
    (latencies, _) = measure(
        runners, config(warmup=50, iterations=50, max_seconds=20), make_inputs, rounds.append, world.clock
    )
    assert latencies[0].iterations == 7
    assert sum(rounds) == config(warmup=50, iterations=50).rounds == 100


def test_a_slow_model_is_timed_in_both_directions() -> None:
    assert run(World(), "AB", warmup=5, iterations=30, max_seconds=0.1) == ["AB", "AB", "BA"]


def test_nothing_to_time() -> None:
    assert measure([], config(), make_inputs) == []


def test_random_inputs() -> None:
    arrays = random_inputs(3, 5, vocab_size=50, seed=7)
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        name: ((3, 5), np.dtype(np.int32)) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert np.all(arrays["attention_mask"] == 1)
    assert arrays["input_ids"].min() >= 0
    assert arrays["input_ids"].max() < 50
    np.testing.assert_array_equal(arrays["input_ids"], random_inputs(3, 5, vocab_size=50, seed=7)["input_ids"])
    assert np.any(arrays["input_ids"] != random_inputs(3, 5, vocab_size=50, seed=8)["input_ids"])
    assert list(random_inputs(1, 2, 50, input_names=("attention_mask", "input_ids"))) == ["attention_mask", "input_ids"]


def test_random_inputs_refusals() -> None:
    with pytest.raises(DataError, match=r"\['pixels'\].*input_ids"):
        random_inputs(1, 2, 50, input_names=("input_ids", "pixels"))
    with pytest.raises(ConfigError, match="vocab_size 0"):
        random_inputs(1, 2, 0)


def test_parse_shapes_list() -> None:
    assert parse_shapes_list("1x128, 16X128") == ((1, 128), (16, 128))


@pytest.mark.parametrize("text", ["", "128", "1x128,", "1x", "-1x8", "1x8x2", "ax8"])
def test_parse_shapes_list_names_the_item(text: str) -> None:
    with pytest.raises(ConfigError, match="expected BATCHxSEQUENCE items such as 1x128,16x128"):
        parse_shapes_list(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": ()}, "--shapes is empty"),
        ({"shapes": ((0, 128),)}, "--shapes 0x128, expected"),
        ({"shapes": ((1, 8), (1, 8))}, "1x8,1x8 names a shape twice"),
        ({"warmup": -1}, "--warmup -1, expected 0 or more"),
        ({"iterations": 0}, "--iterations 0, expected 1 or more"),
        ({"max_seconds": 0.0}, "--max_seconds 0.0, expected a positive"),
        ({"max_seconds": float("nan")}, "--max_seconds nan"),
    ],
)
def test_config_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_what_is_timed_names_the_copies() -> None:
    assert "copies to and from the device are inside" in WHAT_IS_TIMED
