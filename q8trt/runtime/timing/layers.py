"""The times of an engine's single layers, by the profiler of its runtime."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol, runtime_checkable

from q8trt.errors import BackendError
from q8trt.runtime.base import Runner


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer in a batch.

    Attributes:
        name: the runtime's name of the layer; a fused layer has a new name.
        ms: the median over the batches profiled; the times of layers with one name are added up.
    """

    name: str
    ms: float


@runtime_checkable
class ProfiledRunner(Protocol):
    """A runner whose runtime has a layer profiler."""

    def layer_times(self, arrays: Mapping[str, Any], iterations: int = 10) -> list[LayerTime]:
        """Run a batch `iterations` times after one warm-up, and return the layers in the order in which they ran.

        A profiled batch takes longer than `Runner.infer`, so the times are shares and not a latency.

        Raises:
            DataError, BackendError: as `Runner.infer`; BackendError also if the runtime reports no layer.
        """


@dataclass(frozen=True)
class LayerTimes:
    """The layers of one engine at one shape.

    Attributes:
        batch: rows, of `sequence` tokens each.
        iterations: batches profiled, without the warm-up.
        layers: the layers, in the order in which they ran.
    """

    batch: int
    sequence: int
    iterations: int
    layers: tuple[LayerTime, ...]

    @property
    def total_ms(self) -> float:
        """The sum of all layers, in ms; more than the latency, because profiling takes time."""
        return sum(layer.ms for layer in self.layers)


def measure_layers(
    runners: Sequence[Runner],
    shape: tuple[int, int],
    make_inputs: Callable[[int, int], Mapping[str, Any]],
    iterations: int = 10,
) -> list[LayerTimes | str]:
    """Profile each of `runners` at one (batch, sequence).

    Returns:
        for each runner its layers, or the reason if its profiler failed or is missing; other runners are still profiled.
    """
    return [_measure(runner, shape, make_inputs, iterations) for runner in runners]


def _measure(
    runner: Runner, shape: tuple[int, int], make_inputs: Callable[[int, int], Mapping[str, Any]], iterations: int
) -> LayerTimes | str:
    if not isinstance(runner, ProfiledRunner):
        return f"{runner.backend} has no layer profiler"
    try:
        return LayerTimes(*shape, iterations, tuple(runner.layer_times(make_inputs(*shape), iterations)))
    except BackendError as error:
        return str(error)


def median_times(reports: Mapping[str, Sequence[float]], batches: int, profiler: str) -> list[LayerTime]:
    """Return the median time of each layer over the batches after the first, which allocates memory.

    Args:
        reports: layer -> its times in ms, batch after batch; a batch has one time for each layer of that name.
        batches: the number of batches, 2 or more.
        profiler: its name, for the message.

    Raises:
        BackendError: no layer was reported.
    """
    if not reports:
        raise BackendError(f"{profiler} reported no layer")
    layers = []
    for name, times in reports.items():
        count = max(1, len(times) // batches)  # layers of that name
        sums = [sum(times[start : start + count]) for start in range(0, len(times), count)]
        layers.append(LayerTime(name, median(sums[1:] or sums)))
    return layers


def by_kind(times: LayerTimes) -> list[tuple[str, float, int]]:
    """Add up layers whose names differ only in the number after ``layer.`` or ``layer_``.

    Returns:
        (name with ``*`` instead of the number, ms, number of layers), the slowest first.
    """
    sums: dict[str, tuple[float, int]] = {}
    for layer in times.layers:
        name = re.sub(r"(?<=layer[._])[0-9]+", "*", layer.name)
        ms, count = sums.get(name, (0.0, 0))
        sums[name] = ms + layer.ms, count + 1
    return sorted(((name, ms, count) for name, (ms, count) in sums.items()), key=lambda item: -item[1])
