"""This machine: its GPUs, installed packages, reach of the model hub, and the provenance of a result."""

from q8trt.hardware.gpu import Gpu, GpuState, gpu_states, gpus
from q8trt.hardware.hub import hub_answers
from q8trt.hardware.packages import install_command, installed_version, pip_install

__all__ = [
    "Gpu",
    "GpuState",
    "gpu",
    "gpu_states",
    "gpus",
    "hub",
    "hub_answers",
    "install_command",
    "installed_version",
    "packages",
    "pip_install",
    "provenance",
]
