"""The commands that messages print to install a package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from q8trt.hardware import packages
from q8trt.hardware.packages import EXTRAS, install_command, install_missing, install_module, pip_install

ROOT = Path(__file__).parents[1]


def _name(requirement: str) -> str:
    return re.split(r"[<>=]", requirement)[0]


def test_extras_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: [_name(each) for each in packages] for name, packages in project["optional-dependencies"].items()}
    assert {name: [_name(each) for each in packages] for name, packages in EXTRAS.items()} == {
        name: packages for name, packages in extras.items() if name not in ("dev", "docs")
    }


def test_no_message_asks_for_a_package_that_no_index_has() -> None:
    """q8trt is on no index: ``pip install "q8trt[...]"`` fails wherever it is typed."""
    for path in [*(ROOT / "q8trt").rglob("*.py"), *(ROOT / "examples").rglob("*")]:
        if path.suffix in (".py", ".md", ".txt") and path.name != "packages.py":
            assert not re.search(r"pip install .?q8trt|q8trt\[", path.read_text(encoding="utf-8")), path


def test_commands() -> None:
    assert install_command("rtx") == "pip install tensorrt-rtx cuda-python nvidia-ml-py"
    assert install_command("tensorrt-cu12") == 'pip install tensorrt-cu12 "cuda-python<13" nvidia-ml-py'
    assert install_module("modelopt.torch.quantization") == "pip install nvidia-modelopt"
    assert install_module("google.protobuf") == "pip install protobuf"
    assert install_module("rich") == "pip install rich"
    assert pip_install("a", "b>=1") == 'pip install a "b>=1"'


@pytest.mark.parametrize(("present", "command"), [({"fastapi"}, "pip install uvicorn"), (set(), None), (None, None)])
def test_only_missing_packages_are_named(
    present: set[str] | None, command: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = set(EXTRAS["examples"]) if present is None else present
    monkeypatch.setattr(packages, "installed_version", lambda package: "1" if package in present else None)
    assert install_missing("examples") == (command or install_command("examples"))
