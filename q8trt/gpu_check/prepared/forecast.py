"""The comparison of the linter's forecast for each part with the layers of the plan.

The layers come from the inspector or the builder's log (`q8trt.engine.layers`). A part is found by the names of its ONNX nodes,
which TensorRT keeps in a layer's metadata. With several optimization profiles, a part has a layer in each profile. The result is
that of the layer with the widest type; an attention is fused only if it is fused in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from q8trt.engine.layers import TYPES, Layer
from q8trt.lint import FUSED, NOT_FUSED, Site, SiteKind

UNKNOWN = "no layer names it"


@dataclass(frozen=True)
class Disagreement:
    """A part whose `layers` differ from the linter's forecast, in the terms of `Site.forecast`."""

    kind: SiteKind
    name: str
    forecast: str
    plan: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A forecast and a plan, compared.

    Attributes:
        sites: kind -> number of parts; `agreements` counts the parts with a correct forecast.
        disagreements: the parts with a wrong forecast.
        reformats: names of the layers that only move or convert data.
        fp32_leftovers: names of the layers that compute in FP32.
        layers: number of layers that compute or move data.
    """

    sites: dict[str, int]
    agreements: dict[str, int]
    disagreements: tuple[Disagreement, ...]
    reformats: tuple[str, ...]
    fp32_leftovers: tuple[str, ...]
    layers: int


def compare(sites: Sequence[Site], layers: Sequence[Layer]) -> Comparison:
    """Return the comparison of the forecast of `sites` with the `layers` of a plan."""
    working = [layer for layer in layers if layer.precision]
    counts = {str(kind): sum(site.kind is kind for site in sites) for kind in SiteKind}
    agreements, disagreements = dict.fromkeys(counts, 0), []
    for site in sites:
        holders = [layer for layer in working if not layer.sources.isdisjoint(site.nodes)]
        if (plan := _in_plan(site, holders)) == site.forecast:
            agreements[site.kind] += 1
        else:
            names = tuple(layer.name for layer in holders)
            disagreements.append(Disagreement(site.kind, site.name, site.forecast, plan, names))
    return Comparison(
        counts,
        agreements,
        tuple(disagreements),
        tuple(layer.name for layer in working if layer.is_reformat),
        tuple(layer.name for layer in working if layer.precision == "FP32" and not layer.is_reformat),
        len(working),
    )


def _in_plan(site: Site, holders: Sequence[Layer]) -> str:
    """Return the treatment of a part by its layers, in the terms of `Site.forecast`."""
    match site.kind:
        case SiteKind.ATTENTION:
            matrices = [layer for layer in holders if layer.is_matrix]
            fused = matrices and all(layer.is_attention or layer.sources.issuperset(site.nodes) for layer in matrices)
            return FUSED if fused else NOT_FUSED if matrices else UNKNOWN
        case SiteKind.GEMM | SiteKind.BMM:
            types = [layer.precision for layer in holders if layer.is_matrix]
        case SiteKind.EMBEDDING:
            types = [
                min(_read(layer), key=TYPES.index) for layer in holders if _read(layer)
            ]  # the table, not its scale
        case SiteKind.RESIDUAL:
            types = [max(_read(layer), key=TYPES.index) for layer in holders if layer.inputs and _read(layer)]
    return max((each for each in types if each), key=TYPES.index, default=UNKNOWN)


def _read(layer: Layer) -> list[str]:
    """Return the types that a layer reads."""
    return [tensor.datatype for tensor in (*layer.inputs, *layer.constants) if tensor.datatype]
