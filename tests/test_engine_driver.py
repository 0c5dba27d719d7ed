"""The driver's CUDA version against the one that a TensorRT package was built for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from q8trt.engine import backend as seam
from q8trt.engine import driver
from q8trt.engine.backend import Backend
from q8trt.engine.config import BuildConfig
from q8trt.engine.driver import DriverProblem, driver_cuda, driver_problem, package_cuda
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import BackendError

PACKAGES = {"tensorrt-cu13": "11.4.0", "tensorrt-cu13-bindings": "11.4.0", "tensorrt-cu13-libs": "11.4.0"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 11.4 for CUDA 13, and TensorRT-RTX for CUDA 12 of which only the bindings come from pip."""
    packages = {**PACKAGES, "tensorrt-rtx-cu12-bindings": "1.7.1"}
    monkeypatch.setattr(driver, "installed_version", packages.get)
    names = [
        types.SimpleNamespace(name=name.replace("-", "_")) for name in [*packages, "tensorrt", "tensorrt-lean-cu13"]
    ]
    monkeypatch.setattr(driver, "distributions", lambda: names)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("cuda", [None, (13, 0), (13, 4), (14, 0)])
def test_a_driver_that_fits(cuda: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "driver_cuda", lambda: cuda)
    assert driver_problem("tensorrt", "TensorRT 11.4.0") is None


@pytest.mark.usefixtures("installed")
def test_an_older_driver_names_the_package_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "driver_cuda", lambda: (12, 4))
    assert str(driver_problem("tensorrt", "TensorRT 11.4.0")) == (
        "TensorRT 11.4.0 is built for CUDA 13, and this driver supports CUDA 12.4 at most: update the driver, or install the "
        "package for CUDA 12: pip uninstall -y tensorrt tensorrt-cu13 tensorrt-cu13-bindings tensorrt-cu13-libs && "
        'pip install tensorrt-cu12 "cuda-python<13" nvidia-ml-py'
    )
    assert driver_problem("tensorrt_rtx", "TensorRT-RTX 1.7.1") is None
    monkeypatch.setattr(driver, "driver_cuda", lambda: (11, 8))
    problem = driver_problem("tensorrt_rtx", "TensorRT-RTX 1.7.1")
    assert problem == DriverProblem("TensorRT-RTX 1.7.1", "tensorrt-rtx", built_for=12, driver=(11, 8))
    assert "driver supports CUDA 11.8" in str(problem)


@pytest.mark.usefixtures("installed")
def test_cuda_of_packages() -> None:
    assert package_cuda("tensorrt") == 13
    assert package_cuda("tensorrt_rtx") == 12


@pytest.mark.usefixtures("installed")
def test_nothing_is_constructed_on_an_older_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 11 would return an object whose destructor ends the process."""
    monkeypatch.setattr(driver, "driver_cuda", lambda: (12, 4))
    module: Any = types.ModuleType("tensorrt")
    module.Runtime = lambda logger: pytest.fail("constructed")
    with pytest.raises(BackendError, match=r"is built for CUDA 13, and this driver supports CUDA 12\.4"):
        Backend("tensorrt", module, "11.4.0").runtime()


def test_an_object_around_null_is_never_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA may fail to start although the versions fit; TensorRT 11 logs an error then and returns an object all the same."""
    logger = types.SimpleNamespace(errors=[])
    destroyed = []

    class Null:
        def __init__(self, log: Any) -> None:
            log.errors.append("CUDA initialization failure with error: 35")

        def __del__(self) -> None:
            destroyed.append(self)

    module: Any = types.ModuleType("tensorrt")
    module.Runtime = Null
    monkeypatch.setattr(Backend, "logger", lambda self: logger)
    monkeypatch.setattr(seam, "driver_problem", lambda *_: None)
    with pytest.raises(BackendError, match="cannot start: CUDA initialization failure with error: 35"):
        Backend("tensorrt", module, "11.4.0").runtime()
    assert not destroyed


@pytest.mark.parametrize(
    ("cuda", "says"), [(None, "builds on an NVIDIA GPU only, and no driver"), ((12, 4), "CUDA 13")]
)
def test_a_build_is_refused_before_the_export(
    cuda: tuple[int, int] | None, says: str, installed: None, rtx: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "driver_cuda", lambda: cuda)
    monkeypatch.setattr(seam, "driver_cuda", lambda: cuda)
    with pytest.raises(BackendError, match=says):
        BuildConfig(profiles=(ShapeProfile(),)).check_supported(Backend("tensorrt", rtx.module, "11.4.0"))
    BuildConfig(profiles=(ShapeProfile(),)).check_supported(rtx)  # TensorRT-RTX builds without a GPU


LEAN = """
import tensorrt_lean
from q8trt.engine.backend import Backend
from q8trt.errors import BackendError
try:
    Backend("tensorrt", tensorrt_lean, tensorrt_lean.__version__).runtime()
except BackendError as error:
    print(error)
"""


@pytest.mark.skipif(driver_cuda() is not None, reason="needs a machine without an NVIDIA driver")
def test_the_real_library_without_a_driver() -> None:
    """TensorRT's lean runtime returns an object around null here; the process must end well all the same."""
    pytest.importorskip("tensorrt_lean", reason="tensorrt-lean-cu13 is not installed")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer
    assert re.match(r"TensorRT 11\S* cannot start: .*CUDA driver version is insufficient", answer.stdout)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="needs a C compiler on Linux")
@pytest.mark.parametrize(
    ("version", "code", "expected"), [(12040, 0, "(12, 4)"), (13020, 0, "(13, 2)"), (0, 3, "None")]
)
def test_the_driver_is_asked_by_its_own_function(version: int, code: int, expected: str, tmp_path: Path) -> None:
    source = tmp_path / "cuda.c"
    source.write_text(f"int cuDriverGetVersion(int *version) {{ *version = {version}; return {code}; }}")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(source)], check=True)
    script = "from q8trt.engine.driver import driver_cuda; print(driver_cuda())"
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.strip() == expected


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(driver.ctypes, "CDLL", missing)
    assert driver_cuda() is None
