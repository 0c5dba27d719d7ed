"""The choice of an engine folder's runtime, and the opening of its runners."""

from __future__ import annotations

from pathlib import Path

from q8trt.engine.manifest import Manifest
from q8trt.errors import BackendError, ConfigError, EngineError
from q8trt.hardware.gpu import gpus
from q8trt.runtime import (
    EngineRuntime,
    Runner,
    RunOptions,
    UnusablePlanError,
    cpu_runtime,
    find_runtime,
    open_runner,
    parse_runtime,
)

DEVICES = {"cuda": "the GPU", "cpu": "the CPU"}
_CPU = 'or run the same graph on the CPU: device="cpu"'


def open_runners(
    folder: Path, manifest: Manifest, device: str | None, backend: str | None, threads: int | None, contexts: int
) -> list[Runner]:
    """Return the runners of an engine folder: one that serves all threads, or `contexts` runners.

    The arguments are those of `Engine.load`.

    Raises:
        ConfigError: `device` or `backend` is unknown, they contradict each other, or a number is below 1.
        EngineError: a file of the folder is missing or changed, or the GPU is chosen and there is no plan.
        BackendError: the runtime cannot be used on this machine.
    """
    for name, number in (("threads", threads), ("contexts", contexts)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} must be 1 or more, got {number}")
    runtime = choose(manifest, device, backend)
    try:
        first = open_runner(folder, runtime.name, options=RunOptions(threads=threads))
    except BackendError as error:
        if runtime.device == "cpu" or (isinstance(error, UnusablePlanError) and error.names_cpu):
            raise
        raise BackendError(f"{error}; {_CPU}") from error
    return [first] if runtime.capabilities.concurrent else [first, *_forks(first, contexts - 1)]


def choose(manifest: Manifest, device: str | None, backend: str | None) -> EngineRuntime:
    """Return the runtime for `device` and `backend`, see `Engine.load`. Raises the errors of `open_runners`."""
    if device not in (None, *DEVICES):
        raise ConfigError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    if wanted := parse_runtime(backend):
        if device not in (None, wanted.device):
            where = f'{DEVICES[wanted.device]}; leave device out, or give device="{wanted.device}"'
            raise ConfigError(f'backend="{wanted.name}" runs on {where}')
        return wanted
    if device == "cpu" or (device is None and not gpus()):
        return cpu_runtime()
    if manifest.backend is None:
        raise EngineError(f"the engine has no plan for the GPU; build one with build_engine.py, {_CPU}")
    built = find_runtime(manifest.backend.name)
    if built is None:
        raise EngineError(f"the plan was built by {manifest.backend.name}, which this version does not run; {_CPU}")
    return built


def _forks(first: Runner, number: int) -> list[Runner]:
    forks: list[Runner] = []
    try:
        for _ in range(number):
            forks.append(first.fork())
    except BaseException:
        for runner in (*forks, first):
            runner.close()
        raise
    return forks
