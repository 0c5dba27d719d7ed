"""The devices that engines are made for, and the defaults that suit each."""

from __future__ import annotations

from enum import StrEnum

from q8trt.quantization.precision import Precision


class Target(StrEnum):
    """A device that engines are made for. Its value is its name, on the command line and in JSON files.

    A target decides only what no option says.

    Attributes:
        recipe: the name of the recipe.
        int8: the precision of an INT8 engine.
        fuse_qkv: whether Q, K and V are computed with one GEMM.
    """

    recipe: str
    int8: Precision
    fuse_qkv: bool

    # TensorRT: what a recipe leaves in float costs least in FP16, and residual Adds in INT8 leave the plan as it is (MiniLM).
    GPU = "gpu", "gpu", Precision.INT8_FP16, True
    # ONNX Runtime on a CPU has no arithmetic in FP16, and no gain from INT8 attention products.
    CPU = "cpu", "linear", Precision.INT8, False

    def __new__(cls, name: str, recipe: str = "", int8: Precision = Precision.INT8, fuse_qkv: bool = False) -> Target:
        """Return a member with its defaults; the enumeration calls this once for each row of the table."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.recipe, member.int8, member.fuse_qkv = recipe, int8, fuse_qkv
        return member
