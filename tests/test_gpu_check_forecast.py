"""The linter's forecast against a plan, from hand-made samples of the inspector's JSON of TensorRT 10 and 11."""

from __future__ import annotations

import json
from typing import Any

import pytest

from q8trt.engine.layers import layers_of_inspector
from q8trt.gpu_check.prepared.forecast import Comparison, Disagreement, compare
from q8trt.lint import FUSED, NOT_FUSED, Site, SiteKind

SITES = (
    Site(SiteKind.EMBEDDING, "embeddings: table 30522x384", ("words",), "INT8"),
    Site(SiteKind.GEMM, "layer 0 attention: query GEMM", ("q",), "INT8"),
    Site(SiteKind.GEMM, "layer 0 feed-forward: down GEMM", ("down",), "INT8"),
    Site(SiteKind.BMM, "layer 0 attention: Q x K", ("bmm1",), "INT8"),
    Site(SiteKind.BMM, "layer 0 attention: P x V", ("bmm2",), "INT8"),
    Site(SiteKind.ATTENTION, "layer 0 attention: attention", ("bmm1", "bmm2"), FUSED),
    Site(SiteKind.RESIDUAL, "layer 0 attention: residual Add", ("add",), "INT8"),
    Site(SiteKind.GEMM, "head: pooler", ("pooler",), "FP16"),
)
#: name, LayerType, types that it reads, types of its weights, ONNX nodes
LAYERS: tuple[tuple[str, str, list[str], list[str], list[str]], ...] = (
    ("gather", "kgen", ["Int32"], ["Int8", "Half"], ["words"]),
    ("qkv_myl0_1", "gemm", ["Int8"], ["Int8"], ["q", "k", "v"]),
    ("_gemm_mha_v2_0x1", "kgen", ["Int8", "Int8", "Int8"], [], ["bmm1", "softmax", "bmm2"]),
    ("__myl_AddMeanSub_myl0_3", "kgen", ["Int8", "Half"], [], ["add", "norm"]),
    ("down_myl0_4", "gemm", ["Half"], ["Half"], ["down"]),
    ("copy", "Reformat", ["Half"], [], []),
    ("leftover", "kgen", ["Float"], [], ["norm2"]),
)


def inspected(version: int, layers: Any = LAYERS) -> str:
    """The same layers as the inspector of TensorRT 10 or 11 writes them."""

    def tensor(kind: str, dims: list[int]) -> dict[str, Any]:
        split = {"Datatype": kind, "Format": "(Linear) Row major linear format"}
        joined = {"Format/Datatype": f"Row major linear {kind} format"}
        return {"Name": "t", "Dimensions": dims, **(split if version == 11 else joined)}

    entries = [
        {
            "Name": name, "LayerType": kind, "Inputs": [tensor(each, [1, 8, 32]) for each in read],
            "Constants": [tensor(each, [32, 32]) for each in weights],
            "Outputs": [tensor(read[0].replace("Int32", "Half"), [1, 8, 32])],
            "Metadata": ("\x1f" if version == 11 else "").join(f"[ONNX Layer: {node}]" for node in nodes),
        }
        for name, kind, read, weights, nodes in layers
    ]  # fmt: skip
    return json.dumps({"Layers": entries, "I/O Tensors" if version == 11 else "Bindings": ["input_ids", "logits"]})


@pytest.mark.parametrize("version", [10, 11])
def test_agreements_and_every_disagreement(version: int) -> None:
    assert compare(SITES, layers_of_inspector(inspected(version))) == Comparison(
        sites={"embedding": 1, "GEMM": 3, "attention product": 2, "fused attention": 1, "residual Add": 1},
        agreements={"embedding": 1, "GEMM": 1, "attention product": 2, "fused attention": 1, "residual Add": 0},
        disagreements=(
            Disagreement(SiteKind.GEMM, "layer 0 feed-forward: down GEMM", "INT8", "FP16", ("down_myl0_4",)),
            Disagreement(
                SiteKind.RESIDUAL, "layer 0 attention: residual Add", "INT8", "FP16", ("__myl_AddMeanSub_myl0_3",)
            ),
            Disagreement(SiteKind.GEMM, "head: pooler", "FP16", "no layer names it", ()),
        ),
        reformats=("copy",),
        fp32_leftovers=("leftover",),
        layers=7,
    )


@pytest.mark.parametrize("version", [10, 11])
def test_an_attention_in_two_kernels_is_not_fused(version: int) -> None:
    apart = (("bmm1_myl0_1", "gemm", ["Int8", "Int8"], [], ["bmm1"]), ("bmm2_myl0_2", "gemm", ["Int8"], [], ["bmm2"]))
    comparison = compare(SITES[5:6], layers_of_inspector(inspected(version, apart)))
    (apart_from_forecast,) = comparison.disagreements
    assert (apart_from_forecast.plan, apart_from_forecast.layers) == (NOT_FUSED, ("bmm1_myl0_1", "bmm2_myl0_2"))


def test_all_profiles_must_do_the_same() -> None:
    second = ("qkv [profile 1]_myl1_1", "gemm", ["Half"], ["Half"], ["q"])
    comparison = compare(SITES[1:2], layers_of_inspector(inspected(11, (*LAYERS, second))))
    assert comparison.disagreements[0].plan == "FP16"
