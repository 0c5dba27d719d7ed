"""Latency and throughput of runners, as trtexec defines them.

The speed of a machine changes, because clocks step down and other processes start. So runners take turns, one iteration each. A
change then affects all of them, and the ratio of two medians is reliable even if the medians are not.

Definitions (TensorRT documentation, "Performance Benchmarking using trtexec"): *latency* is H2D + GPU compute + D2H of one
query, *GPU compute* is the kernels alone, *enqueue* is the host's time to launch them, and *host wall time* is from the call to
the logits. *Throughput* is queries over the sum of their host wall times. A query is one batch. If a runner has no device
timings (CPU), latency is the host wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from q8trt.errors import ConfigError, DataError
from q8trt.runtime.base import Runner, TimedRunner
from q8trt.runtime.timing.config import TimingConfig

WHAT_IS_TIMED = (
    "wall time of one batch from token arrays to the model's outputs (logits or embeddings), both in host memory; copies to "
    "and from the device are included, tokenization is not; full-length sequences without padding; runners interleaved after "
    "warm-up"
)
WHAT_IS_TIMED_ON_DEVICES = (
    "H2D + GPU compute + D2H of one query by CUDA events, from token arrays to the model's outputs (logits or embeddings), both "
    "in host memory; tokenization is not included; full-length sequences without padding; runners interleaved after warm-up"
)
#: The parts of a query that a runner with device timings reports, in the order in which they are shown.
PARTS = ("h2d", "gpu", "d2h", "enqueue", "host")
#: Thresholds of trtexec's warnings: enqueue over GPU compute, and the GPU compute's standard deviation over its mean.
_ENQUEUE_BOUND = 0.8
_UNSTABLE_GPU_VARIATION = 0.01
#: p95 over the median, for runners without device timings, which trtexec does not have.
_UNSTABLE_SPREAD = 1.2
_UNSTABLE = "unstable"

Clock = Callable[[], float]
Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Spread:
    """The distribution of a time over the iterations, in ms. Percentiles interpolate linearly; ``std_ms`` divides by N."""

    median_ms: float
    mean_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    std_ms: float


@dataclass(frozen=True)
class TimingWarning:
    """A reason to doubt a time: its `kind`, such as "unstable", and its `detail`."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class Latency(Spread):
    """The times of one batch of one shape.

    Attributes:
        batch: rows of a query, of `sequence` tokens each.
        iterations: queries timed.
        queries_per_s: queries over the sum of their host wall times; `samples_per_s` is `batch` times this rate.
        clock: the kind of latency: "device" (H2D + GPU + D2H) or "host" (wall time).
        parts: the `PARTS` of a query; {} without device timings.
        cuda_graph: whether each query was launched from a CUDA graph; None if the runner does not report it.
        transfers: whether the latency includes copies to and from the device; None if the runner does not time them.
        gemm_tops: matrix products of the model, 10^12 operations a second, over `compute_ms`; None if the model's work is
            not known.
        peak_share: `gemm_tops` over the GPU's peak at this precision; None if either is not known.
        warnings: reasons to doubt the figure.
    """

    batch: int
    sequence: int
    iterations: int
    queries_per_s: float
    samples_per_s: float
    clock: str = "host"
    parts: dict[str, Spread] = field(default_factory=dict)
    cuda_graph: bool | None = None
    transfers: bool | None = None
    gemm_tops: float | None = None
    peak_share: float | None = None
    warnings: tuple[TimingWarning, ...] = ()

    @property
    def shape(self) -> str:
        """``"16x128"``: batch x sequence."""
        return f"{self.batch}x{self.sequence}"

    @property
    def is_unstable(self) -> bool:
        """True if the times vary so much that a ratio of them is doubtful."""
        return any(each.kind == _UNSTABLE for each in self.warnings)

    @property
    def compute_ms(self) -> float:
        """The median time of the arithmetic, in ms: GPU compute if it is known, else the latency."""
        return self.parts["gpu"].median_ms if "gpu" in self.parts else self.median_ms


def spread(milliseconds: Sequence[float]) -> Spread:
    """Return the distribution of times of single iterations, in ms.

    Raises:
        ValueError: there are no times, or one is negative or not finite.
    """
    ms = np.asarray(milliseconds, dtype=np.float64)
    if not ms.size or not np.all(np.isfinite(ms) & (ms >= 0)):
        raise ValueError(f"expected finite milliseconds, one per iteration; got {list(milliseconds)}")
    median, p90, p95, p99 = (float(value) for value in np.percentile(ms, [50, 90, 95, 99], method="linear"))
    return Spread(median, float(ms.mean()), p90, p95, p99, float(ms.min()), float(ms.std()))


def summarize(
    batch: int, sequence: int, seconds: Sequence[float], parts: Mapping[str, Sequence[float]] | None = None
) -> Latency:
    """Return the figures of `seconds`, the host wall times of single iterations.

    Args:
        batch: rows of a query.
        sequence: tokens of a row.
        seconds: one per iteration.
        parts: the `PARTS` of the same iterations in ms, if the runner has them; the latency is then H2D + GPU + D2H.

    Raises:
        ValueError: there are no times, or one is not positive and finite.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if not times.size or not np.all(np.isfinite(times) & (times > 0)):
        raise ValueError(f"expected positive, finite seconds, one per iteration; got {list(seconds)}")
    spreads, milliseconds = {}, 1000 * times
    if parts:
        spreads = {name: spread(parts[name]) for name in PARTS}
        milliseconds = np.sum([np.asarray(parts[name], dtype=np.float64) for name in ("h2d", "gpu", "d2h")], axis=0)
    whole = spread(milliseconds.tolist())
    rate = len(times) / float(times.sum())
    return Latency(
        **vars(whole),
        batch=batch,
        sequence=sequence,
        iterations=len(times),
        queries_per_s=rate,
        samples_per_s=batch * rate,
        clock="device" if parts else "host",
        parts=spreads,
        warnings=tuple(_warnings(whole, spreads)),
    )


def _warnings(latency: Spread, parts: Mapping[str, Spread]) -> Iterator[TimingWarning]:
    """Yield the reasons to doubt the figure, most of them in the terms of trtexec."""
    if parts:
        gpu = parts["gpu"]
        if parts["enqueue"].median_ms > _ENQUEUE_BOUND * gpu.median_ms:
            detail = "launching takes about as long as computing; use a CUDA graph or a larger batch"
            yield TimingWarning("enqueue-bound", detail)
        if parts["h2d"].median_ms + parts["d2h"].median_ms > gpu.median_ms:
            yield TimingWarning("transfer-bound", "the copies take longer than the computation")
        if gpu.mean_ms and gpu.std_ms / gpu.mean_ms > _UNSTABLE_GPU_VARIATION:
            variation = 100 * gpu.std_ms / gpu.mean_ms
            yield TimingWarning(_UNSTABLE, f"GPU compute varies by {variation:.1f}% (standard deviation over mean)")
    elif latency.p95_ms > _UNSTABLE_SPREAD * latency.median_ms:
        yield TimingWarning(_UNSTABLE, f"p95 is {latency.p95_ms / latency.median_ms:.2f} times the median")


def random_inputs(
    batch: int,
    sequence: int,
    vocab_size: int,
    seed: int = 0,
    input_names: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
) -> dict[str, np.ndarray]:
    """Return the arrays of one batch, int32, (batch, sequence): uniform token ids below `vocab_size`, ones, zeros.

    Every sequence has full length, so no runtime gains by skipping padding. The same arguments give the same arrays.

    Raises:
        ConfigError: a size is below 1.
        DataError: an input is not one of BERT's three.
    """
    if min(batch, sequence, vocab_size) < 1:
        raise ConfigError(f"batch {batch}, sequence {sequence}, vocab_size {vocab_size}: expected 1 or more of each")
    shape = (batch, sequence)
    known = {
        "input_ids": np.random.default_rng(seed).integers(vocab_size, size=shape, dtype=np.int32),
        "attention_mask": np.ones(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
    }
    unknown = [name for name in input_names if name not in known]
    if unknown:
        raise DataError(f"no random data for the model inputs {unknown}; known are {list(known)}")
    return {name: known[name] for name in input_names}


def turns(count: int, number: int) -> list[int]:
    """Return the order of `count` runners in round `number`.

    The start rotates and the direction alternates. So each runner has each position equally often, and no runner always follows
    the same neighbor, which leaves its data in the caches.
    """
    step = -1 if number % 2 else 1
    return [(number + step * turn) % count for turn in range(count)]


class Stopwatch:
    """A stopwatch for queries of one runner. It uses device timings if the runner has them, else a clock around `infer`."""

    def __init__(self, runner: Runner, clock: Clock) -> None:
        self._runner, self._clock = runner, clock
        self.seconds: list[float] = []
        self.parts: dict[str, list[float]] = {name: [] for name in PARTS} if isinstance(runner, TimedRunner) else {}
        self._graphs: set[bool | None] = set()

    def query(self, inputs: Inputs) -> None:
        """Run and time one batch."""
        if not isinstance(self._runner, TimedRunner):
            started = self._clock()
            self._runner.infer(inputs)
            self.seconds.append(self._clock() - started)
            return
        timing = self._runner.infer_timed(inputs)
        self.seconds.append(timing.host_ms / 1000)
        self._graphs.add(timing.cuda_graph)
        for name in PARTS:
            self.parts[name].append(getattr(timing, f"{name}_ms"))

    @property
    def cuda_graph(self) -> bool | None:
        """True if every query was launched from a CUDA graph; None if the runner does not report it."""
        return None if None in self._graphs or not self._graphs else self._graphs == {True}

    def latency(self, batch: int, sequence: int) -> Latency:
        """Return the figures of the queries so far, all of one shape."""
        latency = summarize(batch, sequence, self.seconds, self.parts)
        return replace(latency, cuda_graph=self.cuda_graph, transfers=True if self.parts else None)


def _measure_shape(
    runners: Sequence[Runner], config: TimingConfig, inputs: Inputs, progress: Callable[[int], None], clock: Clock
) -> list[Stopwatch]:
    """Return a stopwatch for each runner, with the same number of iterations."""
    warm, timed = ([Stopwatch(runner, clock) for runner in runners] for _ in range(2))
    deadline = clock() + config.max_seconds
    # Warm-up uses at most a quarter of the time, because a slow model needs it for timed iterations.
    warm_by = deadline - 0.75 * config.max_seconds
    done = 0
    for number in range(config.warmup):
        if number and clock() >= warm_by:
            break
        for index in turns(len(runners), number):
            warm[index].query(inputs)
        done += 1
        progress(1)
    number, until = 0, clock() + config.duration_s
    while number < config.iterations or clock() < until:
        # At least two rounds, one in each direction.
        if number >= 2 and clock() >= deadline:
            break
        for index in turns(len(runners), number):
            timed[index].query(inputs)
        number += 1
        if number <= config.iterations:
            done += 1
            progress(1)
    skipped = config.warmup + config.iterations - done
    if skipped:
        progress(skipped)
    return timed


def measure(
    runners: Sequence[Runner],
    config: TimingConfig,
    make_inputs: Callable[[int, int], Inputs],
    on_progress: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter,
    on_shape: Callable[[], None] | None = None,
) -> list[list[Latency]]:
    """Time `runners` side by side, shape by shape, with one iteration of each runner per round.

    Every runner gets the same arrays. After ``max_seconds`` a shape ends with the current round, so all runners have the same
    number of iterations. One warm-up round and two timed rounds always run, unless `config` has fewer.

    Args:
        runners: runners that accept every shape. A `TimedRunner` has device timings. For the others, the time of
            `Runner.infer` includes the copies, because it returns logits on the host.
        config: shapes, iterations and the limit of time.
        make_inputs: (batch, sequence) -> arrays.
        on_progress: called with a number of rounds done or skipped; they add up to ``config.rounds``.
        clock: seconds, monotonic.
        on_shape: called after each shape, while the machine is still warm, for example to read its clocks.

    Returns:
        for each runner, in order, one `Latency` per shape.

    Raises:
        DataError, BackendError: from the runner.
    """
    results: list[list[Latency]] = [[] for _ in runners]
    for batch, sequence in config.shapes if runners else ():
        inputs = make_inputs(batch, sequence)
        watches = _measure_shape(runners, config, inputs, on_progress or (lambda rounds: None), clock)
        for latencies, watch in zip(results, watches, strict=True):
            latencies.append(watch.latency(batch, sequence))
        if on_shape:
            on_shape()
    return results
