"""A runner of an engine folder's ``model.onnx`` on ONNX Runtime, for machines without a GPU and to check any engine.

Importing this module does not import ONNX Runtime; opening the first runner does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.console.names import one_line, printable
from q8trt.engine.manifest import ONNX_FILE, Manifest
from q8trt.errors import BackendError, EngineError, MissingPackageError
from q8trt.files import read_json
from q8trt.files.onnx import check_file
from q8trt.hardware.gpu import gpus
from q8trt.hardware.packages import install_command, installed_version
from q8trt.quantization.precision import Precision
from q8trt.runtime.base import Availability, Capabilities, EngineRuntime, Runner, RunOptions, TritonBackend
from q8trt.runtime.onnxruntime import graph
from q8trt.runtime.timing.layers import LayerTime, median_times

CPU = "CPUExecutionProvider"
_INTEGERS: dict[str, Any] = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}
_SILENT = 4  # ONNX Runtime also prints what it raises; 4 keeps only fatal lines
_KERNEL = "_kernel_time"
SATURATES = (
    "this CPU has no VNNI instructions, and INT8 gains less here than on one that has: the products of bytes take more "
    "instructions, and weights are made unsigned, so that no sum saturates"
)
FP16_ON_CPU = (
    "ONNX Runtime's CPU kernels are slow in FP16, so q8trt widens FP16 graphs to FP32 there: times and scores of these rows "
    "measure no FP16"
)


class OnnxRuntime(EngineRuntime):
    """ONNX Runtime with its CPU kernels."""

    def availability(self) -> Availability:
        """See `EngineRuntime.availability`."""
        version = installed_version("onnxruntime") or installed_version("onnxruntime-gpu") or ""
        try:
            package = import_onnxruntime()
            providers = [name.removesuffix("ExecutionProvider") for name in package.get_available_providers()]
        except Exception as error:  # a broken installation raises anything
            return Availability(version, str(error), install_command("cpu"))
        return Availability(version or str(package.__version__), detail=", ".join(providers))

    def open(self, folder: Path, manifest: Manifest, options: RunOptions) -> Runner:
        """See `EngineRuntime.open`."""
        if ONNX_FILE not in manifest.files:
            raise EngineError(f"{folder} has no {ONNX_FILE} to run on {self.label}; rebuild it with build_engine.py")
        return OnnxRuntimeRunner(folder / ONNX_FILE, manifest.precision, threads=options.threads)

    def caveats(self, device: str, precisions: Sequence[Precision]) -> list[str]:
        """See `Runtime.caveats`: remarks on INT8 and FP16 figures of the CPU."""
        if device != "cpu":
            return []
        quantized = any(precision.is_quantized for precision in precisions)
        notes = [SATURATES] if quantized and graph.saturates() else []
        return notes + [FP16_ON_CPU] * any(precision.is_half for precision in precisions)


ONNX_RUNTIME = OnnxRuntime(
    "onnxruntime",
    "ONNX Runtime",
    Capabilities(concurrent=True, checks_ids=True, widens_half=True),
    device="cpu",
    model_file=ONNX_FILE,
    triton=TritonBackend("onnxruntime_onnx", ("cpu", "cuda")),
)


class OnnxRuntimeRunner(Runner):
    """A runner of an ONNX file, on the CPU unless another execution provider is requested.

    Args:
        path: the ONNX file.
        precision: of the file, or its name.
        providers: execution providers in order of preference, such as ["CUDAExecutionProvider"]; default the CPU's.
        threads: threads within an operator; default ONNX Runtime's own choice (the physical cores).
        widen: on the CPU, compute FP16 tensors in FP32, which is faster there; an FP16 file over 1 GiB runs as it is.

    Raises:
        EngineError: the file is missing or damaged, has no input or output, or its inputs are not integers.
        MissingPackageError: ONNX Runtime or protobuf is not installed.
        BackendError: a provider is not available or could not start.
    """

    runtime = ONNX_RUNTIME

    def __init__(
        self,
        path: str | Path,
        precision: Precision | str,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        widen: bool = True,
    ) -> None:
        self.precision, self._widen = Precision(precision), widen
        self._ort = import_onnxruntime()
        wanted = list(providers or [CPU])
        self._source = Path(path), wanted, threads
        self._session: Any = self._open(*self._source)
        inputs = self._session.get_inputs()
        self.input_names = tuple(each.name for each in inputs)
        try:
            self._types = {each.name: _INTEGERS[each.type] for each in inputs}
        except KeyError as error:
            raise EngineError(f"{path}: inputs must be int32 or int64, not {error}; export the model again") from None
        if not inputs or not self._session.get_outputs():
            raise EngineError(f"{path} has no input or no output; export the model again")
        outputs = [output.name for output in self._session.get_outputs()]
        self._output = "logits" if "logits" in outputs else outputs[0]
        cards = gpus() if wanted[0] != CPU else []
        self.device = "cpu" if wanted[0] == CPU else cards[0].name if cards else wanted[0]
        self._options = self._ort.RunOptions()
        self._options.log_severity_level = _SILENT

    def _open(self, path: Path, wanted: list[str], threads: int | None, trace: Path | None = None) -> Any:
        if not path.is_file():
            raise EngineError(f"{path} does not exist; export the model first")
        available = self._ort.get_available_providers()
        if absent := [name for name in wanted if name not in available]:
            raise BackendError(f"ONNX Runtime has no {', '.join(absent)} here; available: {', '.join(available)}")
        options = self._ort.SessionOptions()
        options.log_severity_level = _SILENT
        # Idle threads that spin occupy the cores. Timed in turn with another session, FP32 took twice as long as alone
        # (2 cores, 1x128).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        if trace is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(trace)
        model = self._model(path) if wanted[0] == CPU else _checked(path)
        try:
            session = self._ort.InferenceSession(model, options, providers=wanted)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise EngineError(f"ONNX Runtime cannot load {path}, which may be damaged: {one_line(error)}") from error
        if wanted[0] not in session.get_providers():  # it falls back to the CPU without an error
            raise BackendError(f"ONNX Runtime could not start {wanted[0]}: CUDA or cuDNN libraries are missing")
        return session

    def _model(self, path: Path) -> bytes | str:
        """Return the model for the CPU: the rewritten graph, or the path of a checked file that needs no rewrite."""
        if not (self.precision.is_quantized or (self._widen and self.precision.is_half)):
            return _checked(path)
        try:
            return graph.for_the_cpu(path.read_bytes(), in_fp32=self._widen)
        except ValueError as error:
            raise EngineError(f"cannot load {path}, which may be damaged: {one_line(error)}") from None
        except OSError as error:
            raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Runner.infer`."""
        return self._run(self._session, arrays)

    def layer_times(self, arrays: Mapping[str, np.ndarray], iterations: int = 10) -> list[LayerTime]:
        """See `ProfiledRunner`. The layers are the nodes of the graph after ONNX Runtime fused them, in another session."""
        with tempfile.TemporaryDirectory() as folder:
            session: Any = None if self._session is None else self._open(*self._source, Path(folder) / "trace")
            for _ in range(1 + iterations):
                self._run(session, arrays)
            reports = read_trace(Path(session.end_profiling()))
        return median_times(reports, 1 + iterations, "ONNX Runtime's profiler")

    def _run(self, session: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        if session is None:
            raise BackendError("this ONNX Runtime runner is closed")
        feed = {name: array.astype(self._types[name], copy=False) for name, array in self.checked(arrays).items()}
        try:
            logits = session.run([self._output], feed, self._options)[0]
        except Exception as error:
            raise BackendError(f"ONNX Runtime refused the batch: {one_line(error)}") from error
        if not isinstance(logits, np.ndarray) or logits.dtype.kind not in "fiub":
            raise EngineError(
                f"{self._source[0]}: its output {printable(self._output)} is not numeric; export the model again"
            )
        return np.asarray(logits, dtype=np.float32)

    def close(self) -> None:
        """Drop the session and its memory."""
        self._session = None


def _checked(path: Path) -> str:
    """Check a file with `check_file` and return its path."""
    check_file(path)
    return str(path)


def import_onnxruntime() -> Any:
    """Return the package. Raises MissingPackageError if it, or protobuf, cannot be imported."""
    try:
        import google.protobuf  # noqa: F401 - comes with ONNX Runtime; `q8trt.files.onnx` needs it
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(f"ONNX Runtime is not usable ({one_line(error)})", install_command("cpu")) from error
    return onnxruntime


def read_trace(path: Path) -> dict[str, list[float]]:
    """Return the times in a file of `InferenceSession.end_profiling`: node -> ms, batch after batch, in order of execution.

    Events have Chrome's trace format, ``dur`` in microseconds ("Profiling Tools" in ONNX Runtime's documentation).

    Raises:
        BackendError: the file is not such a profile.
    """
    reports: dict[str, list[float]] = {}
    try:
        for event in read_json(path):
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
                reports.setdefault(event["name"].removesuffix(_KERNEL), []).append(event["dur"] / 1000)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BackendError(f"ONNX Runtime's profile cannot be read: {printable(str(error))}") from None
    return reports
