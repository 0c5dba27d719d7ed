"""Which backend an engine folder is opened on, and the runners of it."""

from __future__ import annotations

from pathlib import Path

from q8trt.engine.backend import backend_name
from q8trt.engine.manifest import Manifest
from q8trt.errors import BackendError, ConfigError, EngineError
from q8trt.hardware.gpu import gpus
from q8trt.runtime import open_runner
from q8trt.runtime.base import Runner

DEVICES = ("cuda", "cpu")
_CPU = 'or run the same graph on the CPU: device="cpu"'


def open_runners(
    folder: Path, manifest: Manifest, device: str | None, backend: str | None, threads: int | None, contexts: int
) -> list[Runner]:
    """The runners of an engine folder: one of ONNX Runtime, or `contexts` of TensorRT. Arguments as `Engine.load`.

    Raises:
        ConfigError: device or backend is unknown, they contradict each other, or a number is below 1.
        EngineError: a file of the folder is missing or changed, or it has no plan.
        BackendError: the backend cannot be used here.
    """
    for name, number in (("threads", threads), ("contexts", contexts)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} must be 1 or more, got {number}")
    choice = choose(manifest, device, backend)
    if choice == "onnxruntime":
        return [open_runner(folder, choice, threads=threads)]
    try:
        first = open_runner(folder, choice)
    except BackendError as error:
        raise BackendError(f"{error}; {_CPU}") from error
    return [first, *_forks(first, contexts - 1)]


def choose(manifest: Manifest, device: str | None, backend: str | None) -> str:
    """ "onnxruntime", "tensorrt" or "tensorrt_rtx": what `Engine.load` documents. Raises as `open_runners`."""
    if device not in (None, *DEVICES):
        raise ConfigError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    wanted = None if backend in (None, "auto") else _name(str(backend))
    if wanted == "onnxruntime" and device == "cuda":
        raise ConfigError('backend="onnxruntime" runs on the CPU; leave device out, or give device="cpu"')
    if wanted not in (None, "onnxruntime") and device == "cpu":
        raise ConfigError(f'backend="{wanted}" runs on the GPU; leave device out, or give device="cuda"')
    if wanted:
        return wanted
    if device == "cpu" or (device is None and not gpus()):
        return "onnxruntime"
    if manifest.backend is None:
        raise EngineError(f"the engine has no plan for the GPU; build one with build_engine.py, {_CPU}")
    return manifest.backend.name


def _name(backend: str) -> str:
    key = backend.strip().casefold().replace("-", "_")
    return key if key == "onnxruntime" else backend_name(key)


def _forks(first: Runner, number: int) -> list[Runner]:
    forks: list[Runner] = []
    try:
        for _ in range(number):
            forks.append(first.fork())  # type: ignore[attr-defined]
    except BaseException:
        for runner in (*forks, first):
            runner.close()
        raise
    return forks
