"""The devices that engines are made for, and the defaults that suit each."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision


class Target(StrEnum):
    """A device that engines are made for. Its value is its name, on the command line and in JSON files.

    A target decides only what no option says.

    Attributes:
        recipe: the name of the recipe.
        int8: the precision of an INT8 engine.
        fuse_qkv: whether Q, K and V are computed with one GEMM.
        baselines: the precisions that an INT8 engine is compared with.
    """

    recipe: str
    int8: Precision
    fuse_qkv: bool
    baselines: tuple[Precision, ...]

    # TensorRT: what a recipe leaves in float costs least in FP16, and residual Adds in INT8 leave the layers as they are.
    GPU = "gpu", "gpu", Precision.INT8_FP16, True, (Precision.FP32, Precision.FP16)
    # ONNX Runtime on a CPU has no arithmetic in FP16, and no gain from INT8 attention products.
    CPU = "cpu", "linear", Precision.INT8, False, (Precision.FP32,)

    def __new__(cls, name: str, *defaults: Any) -> Target:
        """Return a member with its defaults; the enumeration calls this once for each row of the table."""
        member = str.__new__(cls, name)
        member._value_ = name
        if defaults:
            member.recipe, member.int8, member.fuse_qkv, member.baselines = defaults
        return member

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target of a name.

        Raises:
            ConfigError: there is no such target.
        """
        try:
            return cls(text)
        except ValueError:
            raise ConfigError(f"unknown target {text!r}; known: {', '.join(cls)}") from None
