"""The devices that engines are built for, with the defaults of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from q8trt.errors import ConfigError
from q8trt.quantization.precision import Precision


class Target(StrEnum):
    """A device that engines are built for. Its value is its name on the command line and in JSON files.

    The attributes are defaults; an option takes precedence.

    Attributes:
        recipe: the name of the recipe.
        int8: the precision of an INT8 engine.
        fuse_qkv: compute Q, K and V with one GEMM.
        baselines: the precisions that an INT8 engine is compared with.
    """

    recipe: str
    int8: Precision
    fuse_qkv: bool
    baselines: tuple[Precision, ...]

    # TensorRT: float operations are cheapest in FP16, and INT8 residual Adds do not change the layers of the plan.
    GPU = "gpu", "gpu", Precision.INT8_FP16, True, (Precision.FP32, Precision.FP16)
    # ONNX Runtime on a CPU has no FP16 arithmetic and does not gain from INT8 attention products.
    CPU = "cpu", "linear", Precision.INT8, False, (Precision.FP32,)

    def __new__(cls, name: str, *defaults: Any) -> Target:
        """Return a member with its attributes; Enum calls this once for each row of the table."""
        member = str.__new__(cls, name)
        member._value_ = name
        if defaults:
            member.recipe, member.int8, member.fuse_qkv, member.baselines = defaults
        return member

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target with the name `text`.

        Raises:
            ConfigError: the target is unknown.
        """
        try:
            return cls(text)
        except ValueError:
            raise ConfigError(f"unknown target {text!r}; known: {', '.join(cls)}") from None
