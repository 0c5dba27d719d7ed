"""GPUs as NVML reports them."""

from __future__ import annotations

import sys
from pathlib import Path

import pynvml
import pytest
from nvml_fakes import Card, install_nvml

from q8trt.hardware.gpu import Gpu, GpuState, gpu_names, gpu_states, gpus
from q8trt.hardware.provenance import provenance

MIB = 2**20
CARDS = (
    Card("GPU-1a", "NVIDIA L40S", (8, 9), 46068 * MIB, 1234 * MIB, 1995, 2040, 61, None),
    Card("GPU-2b", "NVIDIA H100 80GB HBM3", (9, 0), 81559 * MIB, 0, 210, 2040, 30, 12500),
)
L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", 81559, "570.86.15")

STATES = [
    GpuState("NVIDIA L40S", "570.86.15", 1995.0, 2040.0, 1234.0, 61.0, None),
    GpuState("NVIDIA H100 80GB HBM3", "570.86.15", 210.0, 2040.0, 0.0, 30.0, 12.5),
]


@pytest.fixture(autouse=True)
def no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch, *CARDS)
    assert gpus() == [L40S, H100]
    assert gpu_names() == provenance(["q8trt"])["hardware"]["gpus"] == [L40S.name, H100.name]
    install_nvml(monkeypatch, Card("GPU-1a", "NVIDIA GB10", (12, 1), None), driver="580")
    assert gpus() == [Gpu("NVIDIA GB10", "12.1", 0, "580")]


def test_gpu_states(monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch, *CARDS)
    assert gpu_states() == STATES


def test_no_gpu_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch)
    assert gpus() == gpu_states() == []
    install_nvml(monkeypatch, *CARDS, lost=True)
    assert gpus() == gpu_states() == []

    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(sys.modules["pynvml"], "nvmlInit", no_driver)
    assert gpus() == gpu_states() == []


@pytest.fixture
def no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nvidia-ml-py is missing; returns the one folder of programs."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_nvidia_smi(folder: Path, output: str, code: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ $# = 2 ] && echo '{output}'\nexit {code}\n")
    program.chmod(0o755)


def test_without_the_package_nvidia_smi_lists_the_gpus(no_package: Path) -> None:
    assert gpus() == gpu_states() == gpu_names() == []  # no driver either
    write_nvidia_smi(
        no_package,
        "GPU-1a, 570.86.15, NVIDIA L40S, 8.9, 46068, 1995, 2040, 1234, 61, [N/A]\n"
        "GPU-2b, 570.86.15, NVIDIA H100 80GB HBM3, 9.0, 81559, 210, 2040, 0, 30, 12.50",
    )
    assert gpus() == [L40S, H100]
    assert gpu_states() == STATES
    assert gpu_names() == [L40S.name, H100.name]
    write_nvidia_smi(no_package, "GPU-3c, 580, NVIDIA GB10, 12.1, [N/A], 1, 1, [N/A], 1, 1")
    assert gpus() == [Gpu("NVIDIA GB10", "12.1", 0, "580")]


@pytest.mark.parametrize(("output", "code"), [("No devices were found", 0), ("NVIDIA-SMI has failed", 9)])
def test_nvidia_smi_lists_nothing(no_package: Path, output: str, code: int) -> None:
    write_nvidia_smi(no_package, output, code)
    assert gpus() == gpu_states() == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []),
        ("1", [H100]),
        ("1,0", [H100, L40S]),
        ("GPU-2", [H100]),
        ("0,7,1", [L40S]),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[Gpu]) -> None:
    install_nvml(monkeypatch, *CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == expected
    assert len(gpu_names()) == 2
