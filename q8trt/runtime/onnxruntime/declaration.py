"""The declaration of ONNX Runtime. Importing it imports no package that the light install lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from q8trt.engine.manifest import ONNX_FILE, Manifest
from q8trt.errors import EngineError
from q8trt.hardware.packages import install_command, installed_version
from q8trt.quantization.precision import Precision
from q8trt.runtime.base import Availability, Capabilities, EngineRuntime, Runner, RunOptions, TritonBackend

SATURATES = (
    "this CPU has no VNNI instructions, and INT8 gains less here than on one that has: the products of bytes take more "
    "instructions, and weights are made unsigned, so that no sum saturates"
)
FP16_ON_CPU = (
    "ONNX Runtime's CPU kernels are slow in FP16: such a graph is for GPUs, its time here says nothing of TensorRT"
)


class OnnxRuntime(EngineRuntime):
    """ONNX Runtime with its CPU kernels."""

    def availability(self) -> Availability:
        """See `EngineRuntime.availability`."""
        from q8trt.runtime.onnxruntime.runner import import_onnxruntime

        version = installed_version("onnxruntime") or installed_version("onnxruntime-gpu") or ""
        try:
            package = import_onnxruntime()
            providers = [name.removesuffix("ExecutionProvider") for name in package.get_available_providers()]
        except Exception as error:  # a broken installation raises anything
            return Availability(version, str(error), install_command("cpu"))
        return Availability(version or str(package.__version__), detail=", ".join(providers))

    def open(self, folder: Path, manifest: Manifest, options: RunOptions) -> Runner:
        """See `EngineRuntime.open`."""
        from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

        if ONNX_FILE not in manifest.files:
            raise EngineError(f"{folder} has no {ONNX_FILE} to run on {self.label}; rebuild it with build_engine.py")
        return OnnxRuntimeRunner(folder / ONNX_FILE, manifest.precision, threads=options.threads)

    def caveats(self, device: str, precisions: Sequence[Precision]) -> list[str]:
        """See `Runtime.caveats`: the CPU's share in INT8 and FP16 figures."""
        from q8trt.runtime.onnxruntime.graph import saturates

        if device != "cpu":
            return []
        quantized = any(precision.is_quantized for precision in precisions)
        notes = [SATURATES] if quantized and saturates() else []
        return notes + [FP16_ON_CPU] * any(precision.is_half for precision in precisions)


ONNX_RUNTIME = OnnxRuntime(
    "onnxruntime",
    "ONNX Runtime",
    Capabilities(concurrent=True, checks_ids=True),
    device="cpu",
    model_file=ONNX_FILE,
    triton=TritonBackend("onnxruntime_onnx", ("cpu", "cuda")),
)
