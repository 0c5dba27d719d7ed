"""The libraries of quantizers, NVIDIA ModelOpt and its predecessor pytorch-quantization, behind one interface.

Both store amax in a buffer `_amax` of the quantizer, in the same shapes, so a checkpoint does not depend on the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from q8trt.errors import ConfigError, nearest
from q8trt.quantization.calibrators import CALIBRATORS, Calibrator

if TYPE_CHECKING:
    from modelopt.torch.quantization.nn import TensorQuantizer

    from q8trt.quantization.recipe import QuantizerSpec

LIBRARIES = ("modelopt", "pytorch-quantization")


class Library(Protocol):
    """A source of quantizers and calibrators."""

    @property
    def name(self) -> str:
        """One of LIBRARIES."""

    @property
    def smooths(self) -> bool:
        """True if the library's quantizers have a pre_quant_scale, which smoothing needs."""

    def version(self) -> str:
        """Return the installed version."""

    def new_quantizer(self, spec: QuantizerSpec) -> Any:
        """Return an uncalibrated TensorQuantizer: signed, symmetric, fake, over the full range of `spec.num_bits`."""

    def new_calibrator(self, spec: QuantizerSpec) -> Calibrator:
        """Return a new calibrator for `spec.calibrator`.

        Raises:
            ConfigError: the library has no such calibrator.
        """


@dataclass(frozen=True)
class ModelOpt:
    """NVIDIA ModelOpt's TensorQuantizer, with q8trt's calibrators."""

    name: str = "modelopt"
    smooths: bool = True

    def version(self) -> str:
        """Return the installed version."""
        from importlib.metadata import version

        return version("nvidia-modelopt")

    def new_quantizer(self, spec: QuantizerSpec) -> TensorQuantizer:
        """Return an uncalibrated TensorQuantizer.

        TensorRT clamps to [-128, 127], so `narrow_range` is off (TensorRT documentation, "Working with Quantized Types").
        """
        from modelopt.torch.quantization.config import QuantizerAttributeConfig
        from modelopt.torch.quantization.nn import TensorQuantizer

        attributes = QuantizerAttributeConfig(
            num_bits=spec.num_bits,
            axis=spec.axis,
            narrow_range=False,
            pass_through_bwd=False,  # ModelOpt's default also passes gradients to clipped values
        )
        return TensorQuantizer(attributes)

    def new_calibrator(self, spec: QuantizerSpec) -> Calibrator:
        """Return a new calibrator of `q8trt.quantization.calibrators`. Raises ConfigError for a fixed range."""
        new = CALIBRATORS[spec.calibrator].new
        if new is None:
            raise ConfigError(f"no calibrator {spec.calibrator!r}: the recipe has the fixed range")
        return new(spec.num_bits, spec.axis, spec.percentile)


MODELOPT = ModelOpt()


def library(name: str = "modelopt") -> Library:
    """Return the library `name`.

    Raises:
        ConfigError: the library is unknown or not installed.
    """
    if name == "modelopt":
        return MODELOPT
    if name == "pytorch-quantization":
        from q8trt.quantization.pytorch_quantization_library import PytorchQuantization

        return PytorchQuantization()
    raise ConfigError(f"unknown --quantizer {name!r}{nearest(name, LIBRARIES)}; known: {', '.join(LIBRARIES)}")


def made_by(quantizer: object) -> Library:
    """Return the library of a quantizer."""
    package = type(quantizer).__module__.partition(".")[0]
    return library("pytorch-quantization" if package == "pytorch_quantization" else "modelopt")
