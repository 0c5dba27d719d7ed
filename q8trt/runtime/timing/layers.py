"""What single layers of an engine take, by the backend's own profiler: where the time of a batch goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from q8trt.errors import BackendError
from q8trt.runtime.base import LayerTime, ProfiledRunner, Runner
from q8trt.runtime.timing.config import Shape
from q8trt.runtime.timing.timing import Inputs


@dataclass(frozen=True)
class LayerTimes:
    """One engine's layers at one shape.

    Attributes:
        batch: rows, of `sequence` tokens each.
        iterations: batches profiled.
        layers: in the order in which they ran.
    """

    batch: int
    sequence: int
    iterations: int
    layers: tuple[LayerTime, ...]

    @property
    def total_ms(self) -> float:
        """All layers together; more than the latency, for the profiler takes its time too."""
        return sum(layer.ms for layer in self.layers)


def measure_layers(
    runners: Sequence[Runner], shape: Shape, make_inputs: Callable[[int, int], Inputs], iterations: int = 10
) -> list[LayerTimes | str]:
    """Profile each of `runners` at one (batch, sequence).

    Returns:
        for each runner its layers, or why there are none: a backend's profiler that fails costs its own figures alone.
    """
    found: list[LayerTimes | str] = []
    for runner in runners:
        if not isinstance(runner, ProfiledRunner):
            found.append(f"{runner.backend} has no layer profiler")
            continue
        try:
            layers = runner.layer_times(make_inputs(*shape), iterations)
        except BackendError as error:
            found.append(str(error))
        else:
            found.append(LayerTimes(*shape, iterations, tuple(layers)))
    return found


def by_kind(times: LayerTimes) -> list[tuple[str, float, int]]:
    """Layers that differ in a number of their name alone, as those of the encoder's layers do, added up.

    Returns:
        (name with ``*`` for the number, ms, how many), the longest first.
    """
    sums: dict[str, tuple[float, int]] = {}
    for layer in times.layers:
        name = re.sub(r"(?<=layer[._])[0-9]+", "*", layer.name)
        ms, count = sums.get(name, (0.0, 0))
        sums[name] = ms + layer.ms, count + 1
    return sorted(((name, ms, count) for name, (ms, count) in sums.items()), key=lambda item: -item[1])
