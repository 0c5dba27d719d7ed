"""Number formats of a model: the quantized format of its sites, and the float type elsewhere.

Two tables, `FORMATS` and the members of `Precision`, have all facts about formats that the rest of q8trt needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from q8trt.errors import ConfigError


@dataclass(frozen=True)
class Format:
    """A quantized number format.

    Attributes:
        name: the format's option on the command line, without dashes, and its part of a precision's name.
        num_bits: width of its integers, or (exponent, mantissa) bits of a float, as in `TensorQuantizer.num_bits`.
        onnx_type: its element type in ONNX files, a name of `onnx.TensorProto.DataType`.
        lowest: the smallest value, to which QuantizeLinear saturates.
        largest: the largest value; scale = amax / largest.
    """

    name: str
    num_bits: int | tuple[int, int]
    onnx_type: str
    lowest: int
    largest: int


_INT8 = Format("int8", 8, "INT8", -128, 127)
#: Name -> format.
FORMATS = {each.name: each for each in (_INT8,)}


def format_of(num_bits: int | tuple[int, int]) -> Format:
    """Return the format in which a quantizer of `num_bits` is exported; fewer than 8 bits are exported as INT8."""
    return next((each for each in FORMATS.values() if each.num_bits == num_bits), _INT8)


class Precision(StrEnum):
    """The precision of a model or an engine. Its value is its name on the command line and in JSON files.

    Attributes:
        quantized: the format of quantized tensors; None for a model without quantizers.
        is_half: everything else is FP16; False for FP32.
        rounding: relative error that a layer may have because of rounding.
    """

    quantized: Format | None
    is_half: bool
    rounding: float

    # Rounding as measured on MiniLM, recipes `linear` and `full`: FP32 1e-6; INT8 up to 0.013; INT8 with FP16 elsewhere
    # 0.15, because values have an FP16 error before they are rounded to INT8.
    FP32 = "fp32", None, False, 0.005
    FP16 = "fp16", None, True, 0.02
    INT8 = "int8", _INT8, False, 0.05
    INT8_FP16 = "int8+fp16", _INT8, True, 0.3

    def __new__(
        cls, name: str, quantized: Format | None = None, is_half: bool = False, rounding: float = 0
    ) -> Precision:
        """Return a member with its attributes; Enum calls this once for each row of the table."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.quantized, member.is_half, member.rounding = quantized, is_half, rounding
        return member

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Return the precision with the name `text`, such as "int8+fp16".

        Raises:
            ConfigError: the precision is unknown.
        """
        try:
            return cls(text)
        except ValueError:
            raise ConfigError(f"unknown precision {text!r}; known: {', '.join(cls)}") from None

    @property
    def is_quantized(self) -> bool:
        """True for a model with quantizers."""
        return self.quantized is not None

    @property
    def label(self) -> str:
        """The name in reports: "INT8+FP16"."""
        return self.value.upper()

    @property
    def elsewhere(self) -> Precision:
        """The precision of tensors that are not quantized: FP16 or FP32."""
        return Precision.FP16 if self.is_half else Precision.FP32

    @property
    def options(self) -> list[str]:
        """The options of `build_engine.py` for this precision, independent of the target, such as ["--int8", "--fp16"]."""
        return [f"--{name}" for name in (self.quantized and self.quantized.name, self.elsewhere) if name]
