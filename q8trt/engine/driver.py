"""The CUDA driver, and the TensorRT packages that run on it.

A TensorRT package is built for one major version of CUDA. If the driver is older, TensorRT 11 returns objects around a null
pointer, and every call of them, also of their destructor, ends the process. So the versions are compared before any object of
TensorRT is constructed (TensorRT documentation, "Prerequisites": drivers and CUDA versions).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from importlib.metadata import distributions

from q8trt.hardware.packages import installed_version, pip_install

#: Newest major version of CUDA that is tried in package names.
_NEWEST = 19


@dataclass(frozen=True)
class DriverProblem:
    """A driver that is too old for a TensorRT package.

    Attributes:
        title: the package in words, such as "TensorRT 11.4.0".
        package: its distribution: "tensorrt", "tensorrt-rtx" or "tensorrt-lean".
        built_for: the major CUDA version of the package.
        driver: the newest CUDA version that the driver supports, such as (12, 4).
    """

    title: str
    package: str
    built_for: int
    driver: tuple[int, int]

    @property
    def remedy(self) -> str:
        """The remedy: a newer driver, or the command that installs the package for this driver."""
        major = self.driver[0]
        install = pip_install(f"{self.package}-cu{major}", f"cuda-python<{major + 1}", "nvidia-ml-py")
        return (
            f"update the driver, or install the package for CUDA {major}: "
            f"pip uninstall -y {' '.join(_installed(self.package))} && {install}"
        )

    def __str__(self) -> str:
        major, minor = self.driver
        return (
            f"{self.title} is built for CUDA {self.built_for}, and this driver supports CUDA {major}.{minor} at most: "
            f"{self.remedy}"
        )


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports, such as (12, 4); None without a driver.

    No CUDA context is created, because `cuDriverGetVersion` needs no initialization.
    """
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed else (number.value // 1000, number.value % 1000 // 10)


def package_cuda(module: str) -> int | None:
    """Return the major CUDA version in the name of an installed TensorRT package; None if no installed name has one."""
    package = module.replace("_", "-")
    for major in range(_NEWEST, 10, -1):
        if any(installed_version(f"{package}-cu{major}{part}") for part in ("-libs", "-bindings", "")):
            return major
    return None


def driver_problem(module: str, title: str) -> DriverProblem | None:
    """Return the reason why the driver cannot run a TensorRT package. `title` names the package in the message.

    Return None if the driver can run it, there is no driver, or the CUDA version of the package is not known.
    """
    driver, built_for = driver_cuda(), package_cuda(module)
    if driver is None or built_for is None or driver[0] >= built_for:
        return None
    return DriverProblem(title, module.replace("_", "-"), built_for, driver)


def _installed(package: str) -> list[str]:
    """Return the distributions that make up a TensorRT package: the meta package, libraries and bindings."""
    names = {each.name.replace("_", "-") for each in distributions() if each.name}
    parts = (f"{package}-cu", f"{package}-libs", f"{package}-bindings")
    return sorted(name for name in names if name == package or name.startswith(parts))
