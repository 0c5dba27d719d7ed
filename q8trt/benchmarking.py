"""Runner -> latency and throughput.

Machines drift: clocks step down, neighbours wake up. Runners are therefore timed interleaved, one iteration each in
turn, so that what slows one slows all and the ratio between two medians holds where the medians themselves do not.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from q8trt.errors import ConfigError, DataError
from q8trt.runners.base import Runner

WHAT_IS_TIMED = (
    "wall time of one Runner.infer call, host arrays in, host logits out: copies to and from the device are inside, "
    "tokenization is not; full-length sequences without padding; runners interleaved after warm-up"
)

Clock = Callable[[], float]
Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time and for how long.

    Raises:
        ConfigError: no shape, a shape twice, or a number out of range.
    """

    shapes: tuple[tuple[int, int], ...] = field(
        default=((1, 128), (16, 128)), metadata={"help": "batch x sequence shapes to time, e.g. 1x128,16x128"}
    )
    warmup: int = field(default=5, metadata={"help": "untimed iterations per runner and shape before the timed ones"})
    iterations: int = field(default=30, metadata={"help": "timed iterations per runner and shape"})
    max_seconds: float = field(
        default=60.0, metadata={"help": "stop a shape after this many seconds, all runners and the warm-up together"}
    )

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ConfigError("--shapes is empty, expected e.g. 1x128,16x128")
        for batch, sequence in self.shapes:
            if batch < 1 or sequence < 1:
                raise ConfigError(f"--shapes {batch}x{sequence}, expected a batch and a sequence of 1 or more")
        if len(set(self.shapes)) < len(self.shapes):
            raise ConfigError(f"--shapes {','.join(f'{b}x{s}' for b, s in self.shapes)} names a shape twice")
        if self.warmup < 0:
            raise ConfigError(f"--warmup {self.warmup}, expected 0 or more")
        if self.iterations < 1:
            raise ConfigError(f"--iterations {self.iterations}, expected 1 or more")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise ConfigError(f"--max_seconds {self.max_seconds}, expected a positive number of seconds")

    @property
    def rounds(self) -> int:
        """Rounds of one iteration per runner, over all shapes: what `measure` reports to ``on_progress`` in total."""
        return len(self.shapes) * (self.warmup + self.iterations)


def parse_shapes_list(text: str) -> tuple[tuple[int, int], ...]:
    """``"1x128,16x128"`` -> ``((1, 128), (16, 128))``, each (batch, sequence).

    Raises:
        ConfigError: an item is not BATCHxSEQUENCE.
    """
    shapes = []
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]+)x([0-9]+)", item.strip().lower())
        if not match:
            raise ConfigError(f"--shapes has {item.strip()!r}, expected BATCHxSEQUENCE items such as 1x128,16x128")
        shapes.append((int(match[1]), int(match[2])))
    return tuple(shapes)


@dataclass(frozen=True)
class Latency:
    """The time of one batch of one shape: milliseconds, and samples per second at the median."""

    batch: int
    sequence: int
    iterations: int
    median_ms: float
    mean_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    std_ms: float
    samples_per_s: float

    @property
    def shape(self) -> str:
        """``"16x128"``: batch x sequence."""
        return f"{self.batch}x{self.sequence}"


def summarize(batch: int, sequence: int, seconds: Sequence[float]) -> Latency:
    """The figures of `seconds`, the times of single iterations.

    Percentiles interpolate linearly between the two nearest iterations; ``std_ms`` is the population's.

    Raises:
        ValueError: no times, or one that is not positive and finite.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if not times.size or not np.all(np.isfinite(times) & (times > 0)):
        raise ValueError(f"expected positive, finite seconds, one per iteration; got {list(seconds)}")
    ms = 1000 * times
    median, p90, p95, p99 = (float(value) for value in np.percentile(ms, [50, 90, 95, 99], method="linear"))
    return Latency(
        batch=batch,
        sequence=sequence,
        iterations=len(times),
        median_ms=median,
        mean_ms=float(ms.mean()),
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=float(ms.min()),
        std_ms=float(ms.std()),
        samples_per_s=1000 * batch / median,
    )


def random_inputs(
    batch: int,
    sequence: int,
    vocab_size: int,
    seed: int = 0,
    input_names: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids"),
) -> dict[str, np.ndarray]:
    """Arrays for one batch, int32, shape (batch, sequence): uniform token ids, a mask of ones, token types of zeros.

    Every sequence is full length, so that no backend can gain by skipping padding.

    Args:
        batch: rows.
        sequence: tokens per row.
        vocab_size: ids are drawn from [0, vocab_size).
        seed: the same arguments and seed give the same arrays.
        input_names: which arrays to make, e.g. `Runner.input_names`.

    Raises:
        ConfigError: a size below 1.
        DataError: an input that is not one of BERT's three.
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


def _turns(count: int, number: int) -> list[int]:
    """The order in which `count` runners go in round `number`.

    The start rotates and the direction alternates, so that each runner takes each position equally often and none
    always follows the same neighbour (whose data is what it finds in the caches).
    """
    step = -1 if number % 2 else 1
    return [(number + step * turn) % count for turn in range(count)]


def _measure_shape(
    runners: Sequence[Runner], config: BenchmarkConfig, inputs: Inputs, progress: Callable[[int], None], clock: Clock
) -> list[list[float]]:
    """Seconds of each iteration, a list per runner, all of one length."""
    seconds: list[list[float]] = [[] for _ in runners]
    deadline = clock() + config.max_seconds
    # A quarter of the time is the most that warm-up may eat: a slow model is better timed often than warmed often.
    warm_by = deadline - 0.75 * config.max_seconds
    done = 0
    for number in range(config.warmup):
        if number and clock() >= warm_by:
            break
        for index in _turns(len(runners), number):
            runners[index].infer(inputs)
        done += 1
        progress(1)
    for number in range(config.iterations):
        # Two rounds at least, one in each direction.
        if number >= 2 and clock() >= deadline:
            break
        for index in _turns(len(runners), number):
            started = clock()
            runners[index].infer(inputs)
            seconds[index].append(clock() - started)
        done += 1
        progress(1)
    skipped = config.warmup + config.iterations - done
    if skipped:
        progress(skipped)
    return seconds


def measure(
    runners: Sequence[Runner],
    config: BenchmarkConfig,
    make_inputs: Callable[[int, int], Inputs],
    on_progress: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> list[list[Latency]]:
    """Time `runners` against each other, shape by shape, interleaved: one iteration each per round.

    What is timed is `WHAT_IS_TIMED`: `Runner.infer` is synchronous and returns logits on the host, so the copies from
    host to device and back are inside. Every runner gets the same arrays. When ``max_seconds`` is up a shape ends with
    the round under way, so all runners have equally many iterations; one warm-up round (if any is asked for) and two
    timed rounds are always run.

    Args:
        runners: what to time; each must accept every shape.
        config: shapes, iterations and the cap on time.
        make_inputs: (batch, sequence) -> arrays, e.g. a partial of `random_inputs`.
        on_progress: called with a number of rounds done or skipped; they add up to ``config.rounds``.
        clock: seconds, monotonic.

    Returns:
        for each runner, in the order given, one `Latency` per shape.

    Raises:
        DataError, BackendError: from `Runner.infer`.
    """
    results: list[list[Latency]] = [[] for _ in runners]
    for batch, sequence in config.shapes:
        inputs = make_inputs(batch, sequence)
        times = _measure_shape(runners, config, inputs, on_progress or (lambda rounds: None), clock)
        for latencies, seconds in zip(results, times, strict=True):
            latencies.append(summarize(batch, sequence, seconds))
    return results
