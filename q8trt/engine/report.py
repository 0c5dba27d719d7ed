"""The contents of a built engine: the types of its layers, the types in which the graph's INT8 sites run, and its memory.

`layers` reads TensorRT's reports. This module counts, and records the reason if a count is missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from q8trt.engine import layers as parsing
from q8trt.engine.layers import Layer

_MEMORY = {
    "weights_bytes": re.compile(r"^Total Weights Memory: (\d+) bytes"),
    "activation_bytes": re.compile(r"^Total Activation Memory: (\d+) bytes"),
    "scratch_bytes": re.compile(r"^Max Scratch Memory: (\d+) bytes"),
}


@dataclass(frozen=True)
class GraphSites:
    """The names of the ONNX nodes that may run in INT8, from the parsed network.

    Attributes:
        gemms: matrix products with a weight.
        bmms: matrix products of two activations.
        residual_adds: additions whose two inputs are both dequantized.
    """

    gemms: tuple[str, ...]
    bmms: tuple[str, ...]
    residual_adds: tuple[str, ...]


@dataclass(frozen=True)
class EngineReport:
    """The contents of an engine. A field is None if it could not be read; `notes` has the reason.

    Attributes:
        source: "inspector" (the deserialized engine) or "builder log".
        profiles: number of optimization profiles. The layers of all profiles are counted, because each profile has its own.
        layers: layers that compute or move data, without steps of the schedule and of shapes.
        layers_by_type: all layers by TensorRT's "LayerType".
        layers_by_precision: `layers` by the type they compute in; see `Layer.precision`.
        reformats: layers that only move or convert data.
        gemms: matrix products with a weight in the graph. One layer may compute several (Q, K and V).
        int8_gemms: those of them that run as INT8 x INT8 in every profile.
        bmms: matrix products of two activations in the graph.
        int8_bmms: those of them that run as INT8 x INT8 in every profile.
        fused_attentions: groups of BMMs that one layer computes together.
        residual_adds: additions of two dequantized tensors in the graph.
        int8_residual_adds: those of them whose layers read only INT8 activations, in every profile.
        weights_bytes: bytes of the engine's weights.
        activation_bytes: bytes of device memory of a context at the largest shape of its largest profile.
        scratch_bytes: bytes of scratch memory of the layer that needs the most.
        notes: remarks, and the reasons why fields are None.
    """

    source: str = ""
    profiles: int = 0
    layers: int | None = None
    layers_by_type: dict[str, int] = field(default_factory=dict)
    layers_by_precision: dict[str, int] = field(default_factory=dict)
    reformats: int | None = None
    gemms: int | None = None
    int8_gemms: int | None = None
    bmms: int | None = None
    int8_bmms: int | None = None
    fused_attentions: int | None = None
    residual_adds: int | None = None
    int8_residual_adds: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    scratch_bytes: int | None = None
    notes: tuple[str, ...] = ()


class BuildLog:
    """The lines of the builder's log that the report needs."""

    def __init__(self) -> None:
        self.layers = ""
        self.memory: dict[str, int] = {}

    def add(self, message: str) -> None:
        """Store the facts of a message of any severity. For several profiles, the largest memory counts."""
        if message.startswith(parsing.LOG_PREFIX):
            self.layers = message
            return
        for name, pattern in _MEMORY.items():
            if match := pattern.match(message):
                self.memory[name] = max(int(match[1]), self.memory.get(name, 0))


def engine_report(log: BuildLog, inspected: str | None, sites: GraphSites, profiles: int) -> EngineReport:
    """Return the counts of an engine with `profiles` optimization profiles.

    `inspected` is the inspector's JSON. If it is None, because the engine cannot be loaded, the log is used.
    """
    source = "builder log" if inspected is None else "inspector"
    notes = [f"{name} is not in the builder's log" for name in _MEMORY if name not in log.memory]
    counts: dict[str, Any] = {}
    try:
        if inspected is not None:
            counts = _counts(parsing.layers_of_inspector(inspected), sites)
        elif log.layers:
            counts = _counts(parsing.layers_of_log(log.layers), sites)
        else:
            notes.append("the layers are not known: the builder's log does not list them, and without a GPU "
                         "the engine cannot be loaded and inspected")  # fmt: skip
    except ValueError as error:
        notes.append(f"the layers are not known: {error}")
    if counts and not counts["int8_residual_adds"] and sites.residual_adds and counts["int8_gemms"]:
        notes.append(
            "the residual adds are fused into kernels that read float: their Q/DQ rounds, but saves no traffic"
        )
    known: dict[str, Any] = {**counts, **log.memory}
    return EngineReport(source, profiles, **known, notes=tuple(notes))


def _counts(layers: Sequence[Layer], sites: GraphSites) -> dict[str, Any]:
    working = [layer for layer in layers if layer.precision]
    matrix = [layer for layer in working if layer.is_matrix]
    pairs = {each for layer in matrix if len(each := layer.sources & set(sites.bmms)) > 1}
    return {
        "layers": len(working),
        "layers_by_type": dict(sorted(Counter(layer.kind for layer in layers).items())),
        "layers_by_precision": dict(sorted(Counter(str(layer.precision) for layer in working).items())),
        "reformats": sum(layer.is_reformat for layer in working),
        "gemms": len(sites.gemms),
        "int8_gemms": _count(sites.gemms, matrix, _runs_in_int8),
        "bmms": len(sites.bmms),
        "int8_bmms": _count(sites.bmms, matrix, _runs_in_int8),
        "fused_attentions": len(pairs),
        "residual_adds": len(sites.residual_adds),
        "int8_residual_adds": _count(sites.residual_adds, working, _reads_int8_only),
    }


def _count(names: Collection[str], layers: Sequence[Layer], fits: Callable[[Layer], bool]) -> int:
    """Return the number of ONNX nodes among `names` that some layer computes, and whose layers all satisfy `fits`."""
    sources = ([layer for layer in layers if name in layer.sources] for name in names)
    return sum(bool(holders) and all(map(fits, holders)) for holders in sources)


def _runs_in_int8(layer: Layer) -> bool:
    return layer.precision == "INT8"


def _reads_int8_only(layer: Layer) -> bool:
    read = {tensor.datatype for tensor in layer.inputs if tensor.datatype}
    return read == {"INT8"}
