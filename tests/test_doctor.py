import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE

from q8trt import doctor
from q8trt.doctor import Check, Machine, Step, checks, render, steps
from q8trt.engine.backend import BACKENDS, TITLES, Backend, BackendState
from q8trt.hardware.gpu import Gpu
from q8trt.runtime.base import Availability
from q8trt.runtime.onnxruntime import ONNX_RUNTIME

L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 81559, "570.86.15")
T4 = Gpu("Tesla T4", "7.5", 15360, "570.86.15")


TRAINING = ("torch", "transformers", "datasets", "accelerate", "nvidia-modelopt")
PACKAGES = {
    **dict.fromkeys(TRAINING, "1.0"),
    "torch": "2.13.0",
    "cuda-python": "13.0",
    "nvidia-ml-py": "13",
    "rich": "15.0",
}
CPU = Machine("3.12.1", (), (), PACKAGES, ((ONNX_RUNTIME, Availability("1.0", detail="CPU")),))
WITHOUT_ONNX_RUNTIME = ((ONNX_RUNTIME, Availability("", "not usable", "pip install onnxruntime protobuf")),)


def backends(**versions: str) -> tuple[BackendState, ...]:
    """The states of both backends, of which those named are installed."""
    members = dict.fromkeys(("NONE", "SM75", "SM80", "SM86", "SM89", "SM120"))
    module: Any = types.SimpleNamespace(ComputeCapability=types.SimpleNamespace(__members__=members))
    return tuple(
        BackendState(name, Backend(name, module, versions[name]))
        if name in versions
        else BackendState(name, problem=f"{TITLES[name]} is not installed", installed=False)
        for name in BACKENDS
    )


RTX = replace(CPU, backends=backends(tensorrt_rtx="1.7.1"))


def without(machine: Machine, *packages: str) -> Machine:
    return replace(machine, packages={name: each for name, each in machine.packages.items() if name not in packages})


def how(name: str, machine: Machine) -> tuple[bool, str]:
    return next((step.runs, step.how) for step in steps(machine) if step.name == name)


def test_steps_on_a_cpu() -> None:
    assert steps(RTX) == [
        Step("fine-tune", True, "on the CPU with torch 2.13.0"),
        Step("build engine", True, "on the CPU with TensorRT-RTX 1.7.1"),
        Step("benchmark", True, "ONNX Runtime on the CPU; the plan needs an NVIDIA GPU"),
    ]


def test_steps_on_a_gpu() -> None:
    assert steps(replace(CPU, gpus=(L40S,), torch_cuda="12.8", backends=backends(tensorrt="10.13.2"))) == [
        Step("fine-tune", True, "on NVIDIA L40S with torch 2.13.0"),
        Step("build engine", True, "on NVIDIA L40S with TensorRT 10.13.2"),
        Step("benchmark", True, "TensorRT 10.13.2 on NVIDIA L40S"),
    ]


def test_fine_tuning_lacks() -> None:
    machine = replace(RTX, gpus=(L40S,))
    assert "reinstall torch with CUDA" in how("fine-tune", machine)[1]
    assert how("fine-tune", without(machine, "datasets")) == (False, "needs datasets: pip install datasets")


def test_building_lacks() -> None:
    rtx = "pip install tensorrt-rtx cuda-python nvidia-ml-py"
    assert how("build engine", replace(CPU, backends=backends(tensorrt="10.13.2"))) == (
        False,
        f"TensorRT needs an NVIDIA GPU to build; {rtx} does not",
    )
    assert how("build engine", replace(CPU, backends=backends())) == (
        False,
        f"needs pip install tensorrt cuda-python nvidia-ml-py (with a GPU) or {rtx}; an engine of --target cpu needs neither",
    )


def test_the_lean_runtime_runs_version_compatible_plans() -> None:
    lean = Backend("tensorrt", types.ModuleType("tensorrt_lean"), "11.4.0", is_lean=True)
    machine = replace(CPU, gpus=(L40S,), backends=backends(), lean=lean)
    by_name = {check.name: check.value for check in checks(machine)}
    assert by_name["TensorRT's lean runtime"] == "11.4.0 (runs version-compatible plans)"
    assert how("benchmark", machine) == (
        True,
        "TensorRT's lean runtime 11.4.0 on NVIDIA L40S, version-compatible plans only",
    )
    assert not how("build engine", machine)[0]
    full = replace(machine, backends=backends(tensorrt="11.4.0"))
    assert how("benchmark", full) == (True, "TensorRT 11.4.0 on NVIDIA L40S")


@pytest.mark.parametrize(
    ("version", "levels", "value", "ok"),
    [
        ("10.5.0", ("NONE",), "10.5.0", False),
        ("10.6.0", ("NONE",), "10.6.0 (without --hardware_compatibility_level same_compute_capability)", True),
        ("11.4.0", ("NONE", "SAME_COMPUTE_CAPABILITY"), "11.4.0", True),
    ],
)
def test_versions_of_tensorrt_side_by_side(version: str, levels: tuple[str, ...], value: str, ok: bool) -> None:
    module: Any = types.SimpleNamespace(HardwareCompatibilityLevel=types.SimpleNamespace(**dict.fromkeys(levels, 0)))
    states = (BackendState("tensorrt", Backend("tensorrt", module, version)),)
    check = next(each for each in checks(replace(CPU, backends=states)) if each.name == "TensorRT")
    assert (check.value, check.ok) == (value, ok)
    assert ok or check.hint == "q8trt needs TensorRT 10.6 or newer"
    minimum = ".".join(map(str, doctor.MINIMUM_TENSORRT))
    assert f'"tensorrt>={minimum}"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_the_build_needs_a_driver_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8trt.engine.backend.driver_problem", lambda name, title: f"{title}: update the driver")
    machine = replace(CPU, gpus=(L40S,), backends=backends(tensorrt="11.4.0"))
    assert how("build engine", machine) == (False, "TensorRT 11.4.0: update the driver")


def test_benchmarking_in_a_light_install_lacks_its_tables() -> None:
    assert how("benchmark", without(RTX, "rich")) == (
        False,
        "needs rich: pip install rich; running engines in an app does not need it",
    )


def test_benchmarking_lacks() -> None:
    assert how("benchmark", replace(RTX, gpus=(H100,)))[1].endswith(
        "TensorRT-RTX 1.7.1 runs on compute capability 7.5, 8.0, 8.6, 8.9, 12.0 and newer, NVIDIA H100 80GB HBM3 has 9.0: "
        "use TensorRT there (pip install tensorrt cuda-python nvidia-ml-py)"
    )
    assert how("benchmark", replace(RTX, gpus=(T4,)))[1].endswith("a plan for Tesla T4 must be built with --sm 7.5")
    machine = without(replace(RTX, gpus=(H100,)), "cuda-python")
    assert how("benchmark", machine)[1].endswith(
        "the plan needs cuda-python: pip install tensorrt-rtx cuda-python nvidia-ml-py"
    )
    assert how("benchmark", replace(machine, backends=backends(), cpu_runtimes=WITHOUT_ONNX_RUNTIME)) == (
        False,
        "the plan needs a backend: TensorRT is not installed; TensorRT-RTX is not installed; ONNX Runtime on the CPU needs "
        "pip install onnxruntime protobuf",
    )


def test_diagnosis_of_a_bare_machine() -> None:
    bare = Machine("3.12.1", (), backends(), {}, WITHOUT_ONNX_RUNTIME)
    by_name = {check.name: check for check in checks(bare)}
    assert list(by_name) == [
        *("Python", "GPU", "NVIDIA driver", "CUDA runtime", "TensorRT", "TensorRT-RTX", "ONNX Runtime"),
        *("ModelOpt", "torch", "transformers"),
    ]
    assert by_name["Python"].ok
    assert {check.value for name, check in by_name.items() if name != "Python"} == {"none"}
    assert all(check.hint for name, check in by_name.items() if name != "Python")
    assert by_name["TensorRT"].hint == "pip install tensorrt cuda-python nvidia-ml-py"
    assert by_name["GPU"].hint.startswith("pip install nvidia-ml-py, which lists GPUs; only plans need one")
    assert by_name["NVIDIA driver"].hint == "if there is a GPU, install NVIDIA's driver"
    assert "\n  In this checkout, the extras have tested versions: pip install" in render(checks(bare), steps(bare))
    assert not checks(replace(bare, python="3.9.1"))[0].ok


def test_diagnosis_of_a_full_machine() -> None:
    both = backends(tensorrt="10.13.2", tensorrt_rtx="1.7.1")
    by_name = {check.name: check for check in checks(replace(CPU, gpus=(L40S,), torch_cuda="12.8", backends=both))}
    assert all(check.ok and not check.hint for check in by_name.values())
    assert by_name["GPU"].value == "NVIDIA L40S (SM 8.9, 46,068 MiB)"
    assert by_name["NVIDIA driver"].value == "570.86.15"
    assert by_name["torch"].value == "2.13.0 (CUDA 12.8)"
    assert by_name["ONNX Runtime"].value == "1.0 (CPU)"


def test_broken_installations_are_reported() -> None:
    broken = BackendState("tensorrt", problem="TensorRT is installed but cannot be imported: 10 reasons")
    unusable = ((ONNX_RUNTIME, Availability("1.0", "cannot be imported", "pip install onnxruntime")),)
    by_name = {check.name: check for check in checks(replace(RTX, cpu_runtimes=unusable, backends=(broken,)))}
    assert (by_name["ONNX Runtime"].ok, by_name["ONNX Runtime"].value) == (False, "1.0, but it cannot be imported")
    assert (by_name["TensorRT"].ok, by_name["TensorRT"].value) == (False, broken.problem)


def test_every_runtime_for_the_cpu_is_listed() -> None:
    other = replace(ONNX_RUNTIME, name="stub", label="Stub Runtime")
    runtimes = (*WITHOUT_ONNX_RUNTIME, (other, Availability("2.0")))
    machine = replace(RTX, cpu_runtimes=runtimes)
    assert {check.name: check.value for check in checks(machine)}["Stub Runtime"] == "2.0"
    assert how("benchmark", machine) == (True, "Stub Runtime on the CPU; the plan needs an NVIDIA GPU")


def test_this_machine_is_diagnosed_without_torch() -> None:
    code = "import sys; from q8trt.doctor import *; m = probe(); render(checks(m), steps(m)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE).returncode == 0


def test_importing_needs_no_heavy_package() -> None:
    code = (
        "import sys, q8trt.doctor, q8trt.engine.build_process, q8trt.engine.manifest, q8trt.runtime.onnxruntime.runner\n"
        "import q8trt.runtime.tensorrt.runner, q8trt.runtime.torch_runner\n"
        "heavy = {'tensorrt', 'tensorrt_rtx', 'torch', 'onnxruntime', 'onnx', 'cuda', 'transformers'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, capture_output=True, text=True)
    assert answer.stderr.strip() == ""


def test_torch_cuda_version_is_read_from_its_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert doctor._torch_cuda() is None
    (package / "version.py").write_text("__version__ = '2.8.0'\ncuda: Optional[str] = '12.8'\nhip = None\n")
    assert doctor._torch_cuda() == "12.8"
    (package / "version.py").write_text("cuda: Optional[str] = None\n")
    assert doctor._torch_cuda() is None


def test_render_aligns() -> None:
    text = render(
        [Check("GPU", "none", False, "get one"), Check("torch", "2.13", True, "")], [Step("tune", True, "CPU")]
    )
    assert text.splitlines() == [
        "Found",
        "  -   GPU    none  -> get one",
        "  ok  torch  2.13",
        "",
        "Runs here",
        "  yes tune   CPU",
    ]
