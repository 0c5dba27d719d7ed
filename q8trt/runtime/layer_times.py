"""What a backend's profiler reports of single layers -> a time for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from q8trt.console.names import printable
from q8trt.errors import BackendError
from q8trt.files import read_json
from q8trt.runtime.base import LayerTime

_KERNEL = "_kernel_time"


def typical(reports: Mapping[str, Sequence[float]], batches: int, who: str) -> list[LayerTime]:
    """The median time of each layer over the batches after the first one, during which memory is taken.

    Args:
        reports: layer -> what was reported of it, in ms, batch after batch; as often a batch as layers bear its name.
        batches: how many there were, two at least.
        who: the profiler, for the message.

    Raises:
        BackendError: no layer was reported.
    """
    if not reports:
        raise BackendError(f"{who} reported no layer")
    found = []
    for name, times in reports.items():
        each = max(1, len(times) // batches)  # layers of that name
        sums = [sum(times[start : start + each]) for start in range(0, len(times), each)]
        found.append(LayerTime(name, median(sums[1:] or sums)))
    return found


def read_trace(path: Path) -> dict[str, list[float]]:
    """What `InferenceSession.end_profiling` left: node -> ms, batch after batch, in the order in which they first ran.

    Raises:
        BackendError: it is no such file.

    Events are in Chrome's trace format, ``dur`` in microseconds ("Profiling Tools" in ONNX Runtime's documentation).
    """
    reports: dict[str, list[float]] = {}
    try:
        events = read_json(path)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
                reports.setdefault(event["name"].removesuffix(_KERNEL), []).append(event["dur"] / 1000)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BackendError(f"ONNX Runtime's profile cannot be read: {printable(str(error))}") from None
    return reports
