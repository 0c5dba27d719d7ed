import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from waiting import PATIENCE

from q8trt import doctor
from q8trt.doctor import Check, Step, diagnose, render, steps
from q8trt.engine.backend import Backend
from q8trt.errors import BackendError
from q8trt.hardware.gpu import Gpu

L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 81559, "570.86.15")
T4 = Gpu("Tesla T4", "7.5", 15360, "570.86.15")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine described by its packages, GPUs, backends' versions and ONNX Runtime's providers."""
    training = dict.fromkeys(("transformers", "datasets", "accelerate", "nvidia-modelopt", "onnxruntime"), "1.0")
    machine = types.SimpleNamespace(
        packages={"torch": "2.13.0", "cuda-python": "13.0", "rich": "15.0", **training},
        cards=[],
        backends={"tensorrt_rtx": "1.7.1"},
        cuda=None,
        providers=["CPUExecutionProvider"],
    )

    def version(package: str) -> str:
        if package not in machine.packages:
            raise PackageNotFoundError(package)
        return str(machine.packages[package])

    def find(name: str | None = None) -> Backend:
        if not machine.backends:
            raise BackendError("TensorRT is not installed")
        name = name or min(machine.backends)
        members = dict.fromkeys(("NONE", "SM75", "SM80", "SM86", "SM89", "SM120"))
        module: Any = types.SimpleNamespace(ComputeCapability=types.SimpleNamespace(__members__=members))
        return Backend(name, module, machine.backends[name])

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "gpus", lambda: machine.cards)
    monkeypatch.setattr(doctor, "find_backend", find)
    monkeypatch.setattr(
        doctor,
        "backend_status",
        lambda: {name: machine.backends.get(name, "is not installed") for name in ("tensorrt", "tensorrt_rtx")},
    )
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: machine.cuda)
    monkeypatch.setattr(doctor, "_providers", lambda: machine.providers)
    return machine


def how(name: str) -> tuple[bool, str]:
    return next((step.runs, step.how) for step in steps() if step.name == name)


def test_steps_on_a_cpu(machine: types.SimpleNamespace) -> None:
    assert steps() == [
        Step("fine-tune", True, "on the CPU with torch 2.13.0"),
        Step("build engine", True, "on the CPU with TensorRT-RTX 1.7.1"),
        Step("benchmark", True, "ONNX Runtime on the CPU; the plan needs an NVIDIA GPU"),
    ]


def test_steps_on_a_gpu(machine: types.SimpleNamespace) -> None:
    machine.cards, machine.cuda, machine.backends = [L40S], "12.8", {"tensorrt": "10.13.2"}
    assert steps() == [
        Step("fine-tune", True, "on NVIDIA L40S with torch 2.13.0"),
        Step("build engine", True, "on NVIDIA L40S with TensorRT 10.13.2"),
        Step("benchmark", True, "TensorRT 10.13.2 on NVIDIA L40S"),
    ]


def test_fine_tuning_lacks(machine: types.SimpleNamespace) -> None:
    machine.cards = [L40S]
    assert "reinstall torch with CUDA" in how("fine-tune")[1]
    del machine.packages["datasets"]
    assert how("fine-tune") == (False, "needs datasets: pip install datasets")


def test_building_lacks(machine: types.SimpleNamespace) -> None:
    machine.backends = {"tensorrt": "10.13.2"}
    assert how("build engine") == (
        False,
        "TensorRT needs an NVIDIA GPU to build; pip install tensorrt-rtx cuda-python nvidia-ml-py does not",
    )
    machine.backends = {}
    runs, what = how("build engine")
    assert not runs
    rtx = "pip install tensorrt-rtx cuda-python nvidia-ml-py"
    assert what == f"needs pip install tensorrt cuda-python nvidia-ml-py (with a GPU) or {rtx}"


def test_benchmarking_in_a_light_install_lacks_its_tables(machine: types.SimpleNamespace) -> None:
    del machine.packages["rich"]
    assert how("benchmark") == (
        False,
        "needs rich: pip install rich; to run engines in an app it is not needed",
    )


def test_benchmarking_lacks(machine: types.SimpleNamespace) -> None:
    machine.cards = [H100]
    assert how("benchmark")[1].endswith(
        "TensorRT-RTX 1.7.1 runs on compute capability 7.5, 8.0, 8.6, 8.9, 12.0 and newer, NVIDIA H100 80GB HBM3 has 9.0: "
        "use TensorRT there (pip install tensorrt cuda-python nvidia-ml-py)"
    )
    machine.cards = [T4]
    assert how("benchmark")[1].endswith("a plan for Tesla T4 must be built with --sm 7.5")
    machine.cards = [H100]
    del machine.packages["cuda-python"]
    assert how("benchmark")[1].endswith("the plan needs cuda-python: pip install tensorrt-rtx cuda-python nvidia-ml-py")
    machine.backends, machine.providers = {}, []
    runs, what = how("benchmark")
    assert not runs
    assert what.endswith("ONNX Runtime on the CPU needs pip install onnxruntime protobuf")


def test_diagnosis_of_a_bare_machine(machine: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.packages, machine.backends, machine.providers = {}, {}, []
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    checks = {check.name: check for check in diagnose()}
    assert list(checks) == [
        *("Python", "GPU", "NVIDIA driver", "CUDA runtime", "TensorRT", "TensorRT-RTX", "ONNX Runtime"),
        *("ModelOpt", "torch", "transformers"),
    ]
    assert checks["Python"].ok
    assert {check.found for name, check in checks.items() if name != "Python"} == {"none"}
    assert all(check.hint for name, check in checks.items() if name != "Python")
    assert checks["TensorRT"].hint == "pip install tensorrt cuda-python nvidia-ml-py"


def test_diagnosis_of_a_full_machine(machine: types.SimpleNamespace) -> None:
    machine.cards, machine.cuda = [L40S], "12.8"
    machine.backends = {"tensorrt": "10.13.2", "tensorrt_rtx": "1.7.1"}
    checks = {check.name: check for check in diagnose()}
    assert all(check.ok and not check.hint for check in checks.values())
    assert checks["GPU"].found == "NVIDIA L40S (SM 8.9, 46,068 MiB)"
    assert checks["NVIDIA driver"].found == "570.86.15"
    assert checks["torch"].found == "2.13.0 (CUDA 12.8)"
    assert checks["ONNX Runtime"].found == "1.0 (CPU)"


def test_a_broken_onnxruntime_is_told(machine: types.SimpleNamespace) -> None:
    machine.providers = []
    check = next(check for check in diagnose() if check.name == "ONNX Runtime")
    assert (check.ok, check.found) == (False, "1.0, but it cannot be imported")


def test_this_machine_is_diagnosed_without_torch() -> None:
    code = "import sys; from q8trt.doctor import *; render(diagnose(), steps()); sys.exit('torch' in sys.modules)"
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
