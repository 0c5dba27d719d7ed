"""The seam to TensorRT: which package, which GPUs, what it logs."""

from __future__ import annotations

import logging
import re
import types
from collections.abc import Callable
from typing import Any

import pytest

from q8trt.doctor import Machine, steps
from q8trt.engine import backend as seam
from q8trt.engine.backend import (
    BACKENDS,
    Backend,
    BackendState,
    backend_states,
    builders,
    find_backend,
    plan_runtime,
    sm_name,
)
from q8trt.errors import BackendError, ConfigError
from q8trt.hardware.gpu import Gpu


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt-rtx", "TensorRT-RTX", "rtx", " RTX "])
def test_spellings_of_tensorrt_rtx(rtx: Backend, name: str) -> None:
    assert find_backend(name).name == "tensorrt_rtx"
    assert find_backend(name).logger() is rtx.logger()


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match=r"unknown backend 'tensort'; choose .* \(did you mean 'tensorrt'\?\)"):
        find_backend("tensort")


@pytest.mark.parametrize(("name", "package"), [("trt", "tensorrt"), ("rtx", "tensorrt-rtx")])
def test_absent_backend(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setattr(seam.importlib, "import_module", absent)
    with pytest.raises(BackendError, match=rf"is not installed: pip install {package} cuda-python"):
        find_backend(name)
    with pytest.raises(BackendError, match=r"TensorRT is not installed: .*; TensorRT-RTX is not installed: "):
        find_backend()
    states = backend_states()
    assert [(state.name, state.backend, state.installed) for state in states] == [
        (backend, None, False) for backend in BACKENDS
    ]
    assert all("is not installed" in state.problem for state in states)


def absent(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_broken_backend_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open\nshared object file")

    monkeypatch.setattr(seam.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=r"cannot be imported: libnvinfer\.so\.10: cannot open shared object file$"):
        find_backend("tensorrt")
    reason = "TensorRT is installed but cannot be imported: libnvinfer.so.10: cannot open shared object file"
    assert backend_states()[0] == BackendState("tensorrt", problem=reason, installed=True)


L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``packages(tensorrt="10.13.2.6")`` lets these packages alone be importable; keys are modules."""

    def install(**versions: str) -> None:
        def load(name: str) -> Any:
            return types.SimpleNamespace(__version__=versions[name]) if name in versions else absent(name)

        monkeypatch.setattr(seam.importlib, "import_module", load)

    return install


@pytest.mark.parametrize(
    ("cards", "problem", "first"),
    [([L40S], None, "tensorrt"), ([], None, "tensorrt_rtx"), ([L40S], "CUDA 13", "tensorrt_rtx")],
    ids=["GPU", "no GPU", "old driver"],
)
def test_the_machine_decides_which_package_is_taken(
    packages: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cards: list[Gpu], problem: str | None, first: str
) -> None:
    packages(tensorrt="10.13.2.6", tensorrt_rtx="1.7.1")
    monkeypatch.setattr(seam, "gpus", lambda: cards)
    monkeypatch.setattr(seam, "driver_problem", lambda name, title: problem if name == "tensorrt" else None)
    assert find_backend().name == first
    assert sorted(each.name for each in builders()) == list(BACKENDS)
    machine = Machine("3.12.1", tuple(cards), tuple(backend_states()), {})
    assert machine.backend is not None, "doctor promises the same"
    assert machine.backend.name == first
    assert next(step for step in steps(machine) if step.name == "build engine").runs
    assert [each.name for each in builders("tensorrt")] == ["tensorrt"]
    packages(tensorrt="10.13.2.6")
    assert find_backend().title == "TensorRT 10.13.2.6"
    assert find_backend().portable_sms() == []


def test_the_lean_runtime_loads_version_compatible_plans(packages: Callable[..., None]) -> None:
    packages(tensorrt_lean="11.4.0", tensorrt_rtx="1.7.1")
    backend = plan_runtime("tensorrt", version_compatible=True)
    assert (backend.name, backend.is_lean, backend.title) == ("tensorrt", True, "TensorRT's lean runtime 11.4.0")
    for name, compatible in (("tensorrt", False), ("trt", False)):
        with pytest.raises(BackendError, match="TensorRT is not installed"):
            plan_runtime(name, compatible)
    assert find_backend().name == "tensorrt_rtx", "it builds nothing"
    packages(tensorrt_lean="11.4.0", tensorrt="11.4.0")
    assert not plan_runtime("tensorrt", version_compatible=True).is_lean
    packages()
    with pytest.raises(BackendError, match="TensorRT is not installed"):
        plan_runtime("tensorrt", version_compatible=True)
    packages(tensorrt_lean="11.4.0")
    with pytest.raises(BackendError, match="TensorRT-RTX is not installed"):
        plan_runtime("tensorrt_rtx", version_compatible=True)


@pytest.mark.parametrize(
    ("sm", "runs"),
    [("7.0", False), ("7.5", True), ("8.7", False), ("8.9", True), ("9.0", False), ("12.1", True), ("13.0", True)],
)
def test_gpus_that_rtx_refuses(rtx: Backend, sm: str, runs: bool) -> None:
    refusal = rtx.refusal(Gpu("NVIDIA H100", sm, 0, ""))
    assert (refusal is None) is runs
    if refusal:
        assert re.fullmatch(
            rf"TensorRT-RTX [\d.]+ runs on compute capability 7\.5, .* and newer, NVIDIA H100 has {sm}: use TensorRT there "
            r"\(pip install tensorrt cuda-python nvidia-ml-py\)",
            refusal,
        )
    assert Backend("tensorrt", rtx.module, "11.1").refusal(Gpu("NVIDIA H100", sm, 0, "")) is None


def test_names_of_architectures() -> None:
    assert [sm_name(name) for name in ("SM75", "SM120", "NONE", "CURRENT")] == ["7.5", "12.0", None, None]


def test_the_logger_forwards_and_remembers_errors(rtx: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "q8trt.tensorrt")
    log, severity = rtx.logger(), rtx.module.ILogger.Severity
    rtx.forget_errors()
    assert rtx.last_error() == "no reason was logged"
    log.log(severity.WARNING, "careful")
    log.log(severity.ERROR, "first")
    log.log(severity.INTERNAL_ERROR, "second\n line")
    assert rtx.last_error() == "second line"
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "ERROR"]
