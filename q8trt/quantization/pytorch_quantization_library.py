"""pytorch-quantization's TensorQuantizer and calibrators, for `--quantizer pytorch-quantization`.

NVIDIA archived the library in favor of ModelOpt; its source is in NVIDIA/TensorRT, tools/pytorch-quantization. The
fake-quantized value is x_q = clamp(round(x * s), -2^(b-1), 2^(b-1) - 1) / s with s = (2^(b-1) - 1) / amax. The gradient passes
where |x| <= amax (Wu et al., arXiv 2004.09602, sections 3.1 and 5.2). On the CPU, both are bit-identical to ModelOpt's.

If the CUDA kernels (`pytorch_quantization.cuda_ext`) are not compiled, a stand-in raises an error. The library catches it and
computes with torch's operations instead.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from q8trt.console.names import one_line
from q8trt.errors import ConfigError, QuantizationError
from q8trt.quantization.recipe import QuantizerSpec

NAME = "pytorch-quantization"
PACKAGE = "pytorch_quantization"
#: Methods of the library's calibrators. All except "max" use a histogram, which exists only per tensor.
HISTOGRAM_METHODS = ("percentile", "entropy", "mse")
CALIBRATORS = ("max", *HISTOGRAM_METHODS)
#: Maximum number of bins of a histogram, 8 MB. The first batch sets the width of 2048 bins; larger values add bins.
MOST_BINS = 1 << 20
#: Functions of cuda_ext that the library calls.
_KERNELS = ("fake_tensor_quant", "fake_tensor_quant_", "fake_tensor_quant_with_axis", "fake_e4m3fy")


def _no_kernel(*args: Any, **kwargs: Any) -> Any:
    # FakeTensorQuantFunction catches a RuntimeError and falls back to torch's operations.
    raise RuntimeError(f"{NAME} was installed without its compiled CUDA kernels ({PACKAGE}.cuda_ext)")


def _stand_ins(folder: Path) -> dict[str, ModuleType]:
    """Return name -> stand-in for the modules that the library's setup.py generates, if the package in `folder` lacks them."""
    cuda_ext, version = ModuleType(f"{PACKAGE}.cuda_ext"), ModuleType(f"{PACKAGE}.version")
    for kernel in _KERNELS:
        setattr(cuda_ext, kernel, _no_kernel)
    version_file = folder.parent / "VERSION"
    text = version_file.read_text(encoding="utf-8").strip() if version_file.is_file() else "unknown"
    version.__version__ = text  # type: ignore[attr-defined]
    stand_ins = (cuda_ext, version)
    return {module.__name__: module for module in stand_ins if not PathFinder.find_spec(module.__name__, [str(folder)])}


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Restore the handlers of the root logger, which the import of the library replaces by absl's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def load() -> ModuleType:
    """Return the package `pytorch_quantization`, imported with its warnings switched off.

    Raises:
        ConfigError: it is not installed, or its import fails.
    """
    if PACKAGE in sys.modules:
        return sys.modules[PACKAGE]
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"{NAME} is not installed: the package index has only a placeholder of that name; its source is the folder "
            "tools/pytorch-quantization of https://github.com/NVIDIA/TensorRT; run 'pip install --no-build-isolation .' "
            "in it (needs the CUDA compiler) or, for the CPU, put it on PYTHONPATH; or use --quantizer modelopt"
        )
    stand_ins = _stand_ins(Path(spec.origin).parent)
    sys.modules.update(stand_ins)
    try:
        with _logging_kept():
            package = importlib.import_module(PACKAGE)  # this also imports its submodules calib, nn and tensor_quant
    except Exception as error:  # a missing dependency, kernels built for another torch, an unsupported torch
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
        raise ConfigError(
            f"{NAME} at {spec.origin} cannot be imported: {type(error).__name__}: {one_line(error)}; it needs absl-py, scipy and "
            "pyyaml, and kernels built for the installed torch; or use --quantizer modelopt"
        ) from None
    _quieten()
    return package


def _quieten() -> None:
    """Suppress the warnings about every amax that is set or loaded, hundreds of lines for one model."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    warnings.filterwarnings("ignore", "To copy construct from a tensor", module=f"{PACKAGE}\\.")


@contextlib.contextmanager
def _mse_on_the_cpu() -> Iterator[None]:
    """Keep the histogram of the library's MSE search on the CPU if CUDA is missing; the library always moves it to the GPU."""
    if torch.cuda.is_available():
        yield
        return
    moved: Callable[..., torch.Tensor] = torch.Tensor.cuda
    setattr(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor)  # noqa: B010 - mypy: methods are not assigned to
    try:
        yield
    finally:
        setattr(torch.Tensor, "cuda", moved)  # noqa: B010


class LibraryCalibrator:
    """A calibrator of the library with the interface of `q8trt.quantization.calibrators.Calibrator`.

    Args:
        calibrator: pytorch-quantization's MaxCalibrator or HistogramCalibrator.
        arguments: the arguments of its `compute_amax`; empty for MaxCalibrator.
    """

    def __init__(self, calibrator: Any, arguments: Mapping[str, Any]) -> None:
        self.calibrator = calibrator
        self.arguments = dict(arguments)
        self._only_zeros = False

    def collect(self, tensor: torch.Tensor) -> None:
        """Observe one batch or weight: any shape, floating point.

        Raises:
            QuantizationError: the magnitudes of batches differ so much that the histogram would exceed `MOST_BINS`.
        """
        tensor = tensor.detach()
        if self.arguments:
            edges, largest = self.calibrator._calib_bin_edges, float(tensor.abs().max())
            if edges is None and not largest:
                self._only_zeros = True  # a histogram cannot start with zeros, because its bins would have no width
                return
            if edges is not None and largest > float(edges[1]) * MOST_BINS:
                raise QuantizationError(
                    f"a batch reaches {largest:.3g}, the first one only {float(edges[-1]):.3g}, which is too far apart for a "
                    f"histogram of {NAME}; check the checkpoint, or use the calibrator 'max'"
                )
        self.calibrator.collect(tensor)

    def compute_amax(self) -> torch.Tensor | None:
        """Return amax, float32, () per tensor or (out, 1) per output channel; None if nothing was collected."""
        with _mse_on_the_cpu():
            amax = self.calibrator.compute_amax(**self.arguments)
        if amax is None:
            return torch.tensor(0.0) if self._only_zeros else None
        return torch.as_tensor(amax, dtype=torch.float32)


class PytorchQuantization:
    """The `q8trt.quantization.libraries.Library` of pytorch-quantization.

    Raises:
        ConfigError: it is not installed, or its import fails.
    """

    name = NAME
    smooths = False

    def __init__(self) -> None:
        self._package: Any = load()

    def version(self) -> str:
        """Return the version of the library, such as "2.2.1"."""
        return str(self._package.__version__)

    def new_quantizer(self, spec: QuantizerSpec) -> nn.Module:
        """Return an uncalibrated TensorQuantizer for `spec`: signed, symmetric, fake, over the full range [-128, 127]."""
        descriptor = self._package.tensor_quant.QuantDescriptor(
            num_bits=spec.num_bits,
            axis=spec.axis,
            calib_method="histogram" if spec.calibrator in HISTOGRAM_METHODS and spec.axis is None else "max",
            narrow_range=False,
        )
        quantizer: nn.Module = self._package.nn.TensorQuantizer(descriptor)
        return quantizer

    def new_calibrator(self, spec: QuantizerSpec) -> LibraryCalibrator:
        """Return an empty calibrator for `spec`.

        Raises:
            ConfigError: the library has no such calibrator.
        """
        calib = self._package.calib
        if spec.calibrator == "max":
            return LibraryCalibrator(calib.MaxCalibrator(spec.num_bits, spec.axis, unsigned=False), {})
        if spec.calibrator not in HISTOGRAM_METHODS:
            raise ConfigError(
                f"{NAME} has the calibrators {', '.join(CALIBRATORS)}, not {spec.calibrator!r}; choose one of them in "
                "the recipe, or use --quantizer modelopt"
            )
        if spec.axis is not None:
            raise ConfigError(
                f"{NAME} calibrates per channel (axis: {spec.axis}) only by 'max', not by {spec.calibrator!r}; set the "
                "recipe's axis to null, or use --quantizer modelopt"
            )
        arguments: dict[str, Any] = {"method": spec.calibrator}
        if spec.calibrator == "percentile":
            arguments["percentile"] = spec.percentile
        return LibraryCalibrator(calib.HistogramCalibrator(spec.num_bits, None, unsigned=False), arguments)
