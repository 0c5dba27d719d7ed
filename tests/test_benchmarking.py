"""Timing: what is counted, in which order, and when it stops."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from q8trt.errors import ConfigError, DataError
from q8trt.runtime.base import Runner, Timing
from q8trt.runtime.onnxruntime import ONNX_RUNTIME
from q8trt.runtime.timing.config import TimingConfig, grid, parse_shapes_list, parse_sizes
from q8trt.runtime.timing.latency import (
    WHAT_IS_TIMED,
    WHAT_IS_TIMED_ON_DEVICES,
    TimingWarning,
    measure,
    random_inputs,
    summarize,
)
from q8trt.runtime.timing.layers import measure_layers


class World:
    """A clock that only runners move, and the order in which they were called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now


class FakeRunner(Runner):
    runtime, device, precision = ONNX_RUNTIME, "cpu", "fp32"
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


def config(**changes: object) -> TimingConfig:
    return TimingConfig(**{"shapes": ((1, 4),), "warmup": 0, "iterations": 4, **changes})  # type: ignore[arg-type]


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
    # trtexec's: queries over the sum of their host wall times.
    assert latency.queries_per_s == pytest.approx(5 / 0.020)
    assert latency.samples_per_s == pytest.approx(16 * 5 / 0.020)
    assert (latency.clock, latency.parts, latency.compute_ms) == ("host", {}, latency.median_ms)


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
    assert (large.queries_per_s, large.samples_per_s) == (pytest.approx(2.5), pytest.approx(5.0))
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


def test_duration_goes_on_beyond_the_iterations() -> None:
    # Rounds of 2 s: the sixth is the last to start before 12 s are over; two iterations alone would be 4 s.
    assert len(run(World(), "AB", iterations=2, duration_s=11.0)) == 6
    assert len(run(World(), "AB", iterations=7, duration_s=11.0)) == 7
    assert len(run(World(), "AB", iterations=2, duration_s=50.0, max_seconds=51.0)) == 25


def test_progress_adds_up_with_a_duration() -> None:
    rounds: list[int] = []
    world = World()
    measure([FakeRunner(world, "A", 1.0)], config(duration_s=20), make_inputs, rounds.append, world.clock)
    assert len(world.calls) == 20
    assert sum(rounds) == config().rounds == 4


class TimedFake(FakeRunner):
    """Has device timings: H2D 1, GPU `gpu`, D2H 2 ms."""

    device = "NVIDIA L4"

    def __init__(self, gpu: list[float], enqueue: float = 0.1) -> None:
        super().__init__(World(), "T", 1.0)
        self.gpu, self.enqueue = gpu, enqueue
        self.graphs: list[bool | None] = [True] * len(gpu)

    def infer_timed(self, arrays: Mapping[str, np.ndarray]) -> Timing:
        gpu = self.gpu.pop(0)
        return Timing(1.0, gpu, 2.0, self.enqueue, host_ms=gpu + 10.0, cuda_graph=self.graphs.pop(0))


def timed(gpu: list[float], enqueue: float = 0.1) -> Any:
    ((latency,),) = measure([TimedFake(gpu, enqueue)], config(shapes=((2, 4),)), make_inputs)
    return latency


def test_device_timings_are_what_the_latency_is() -> None:
    latency = timed([10.0, 10.0, 30.0, 20.0])
    assert latency.clock == "device"
    assert latency.median_ms == pytest.approx(15 + 3)  # H2D + GPU + D2H
    assert {name: part.median_ms for name, part in latency.parts.items()} == {
        "h2d": 1.0, "gpu": 15.0, "d2h": 2.0, "enqueue": 0.1, "host": 25.0
    }  # fmt: skip
    assert latency.queries_per_s == pytest.approx(4 / 0.110)  # host wall time, not GPU time
    assert (latency.cuda_graph, latency.transfers, latency.compute_ms) == (True, True, 15.0)


def test_a_cuda_graph_is_claimed_only_where_every_query_had_one() -> None:
    for graphs, claimed in (
        ([True] * 4, True), ([False, True, True, True], False), ([False] * 4, False), ([None] * 4, None)
    ):  # fmt: skip
        runner = TimedFake([10.0] * 4)
        runner.graphs = list(graphs)
        ((latency,),) = measure([runner], config(shapes=((2, 4),)), make_inputs)
        assert latency.cuda_graph is claimed


def test_a_runner_without_profiler_is_told() -> None:
    assert measure_layers([TimedFake([])], (1, 4), make_inputs) == ["onnxruntime has no layer profiler"]


def test_warnings_of_device_timings() -> None:
    assert timed([10.0] * 4).warnings == ()
    (enqueue,) = timed([10.0] * 4, enqueue=8.1).warnings
    assert enqueue.kind == "enqueue-bound"
    (transfer,) = timed([2.9] * 4).warnings
    assert transfer.kind == "transfer-bound"
    (unstable,) = timed([10.0, 10.0, 10.0, 10.5]).warnings  # standard deviation 0.2165 of a mean of 10.125
    assert str(unstable) == "unstable: GPU compute varies by 2.1% (standard deviation over mean)"


def test_warning_of_a_wide_spread_on_the_host() -> None:
    assert summarize(1, 8, [1.0] * 19 + [1.19]).warnings == ()
    assert summarize(1, 8, [1.0, 1.0, 1.0, 2.0]).warnings == (
        TimingWarning("unstable", "p95 is 1.85 times the median"),
    )


def test_each_shape_is_looked_at_once() -> None:
    looks: list[int] = []
    world = World()
    shapes = ((1, 4), (2, 8))
    measure(
        [FakeRunner(world, "A", 1.0)], config(shapes=shapes), make_inputs, None, world.clock,
        lambda: looks.append(len(world.calls)),
    )  # fmt: skip
    assert looks == [4, 8]


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
        ({"duration_s": -1.0}, "--duration -1.0, expected from 0 to below --max_seconds 60.0"),
        ({"duration_s": 60.0}, "--duration 60.0, expected"),
        ({"duration_s": float("nan")}, "--duration nan"),
    ],
)
def test_config_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_what_is_timed_names_the_copies() -> None:
    assert "copies to and from the device are included" in WHAT_IS_TIMED
    assert WHAT_IS_TIMED_ON_DEVICES.startswith("H2D + GPU compute + D2H of one query")


def test_grid() -> None:
    batches, lengths = parse_sizes("--batch_sizes", "1, 8"), parse_sizes("--seq_lengths", "32,128")
    assert grid(batches, lengths) == ((1, 32), (8, 32), (1, 128), (8, 128))


@pytest.mark.parametrize("text", ["", "0", "1,", "8,8", "-1", "a", "1.5"])
def test_parse_sizes_names_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--seq_lengths .*, expected different whole numbers of 1 or more"):
        parse_sizes("--seq_lengths", text)
