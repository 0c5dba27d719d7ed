"""The one-way import order of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "q8trt"


def layers() -> dict[str, int]:
    """Module or package directly below q8trt -> its layer, as the table in docs/architecture.md has it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    return {name: int(number) for number, names in rows for name in re.findall(r"`(\w+)`", names)}


def imported_modules(tree: ast.AST, module: list[str]) -> set[str]:
    """Modules directly below q8trt that `tree` imports, lazily or not."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem in ("q8trt", "") else [stem]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("q8trt.")}
    return found


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_the_table_names_every_module_once() -> None:
    present = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    present |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(layers()) == present


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_earlier_layers(path: Path) -> None:
    order = layers()
    parts = ["q8trt", *path.relative_to(PACKAGE).with_suffix("").parts]
    own = parts[1]
    for other in imported_modules(ast.parse(path.read_text(encoding="utf-8")), parts) - {own, "__version__"}:
        assert order[other] <= order[own], (
            f"q8trt.{own} (layer {order[own]}) imports q8trt.{other} (layer {order[other]})"
        )
        if order[other] == order[own]:
            assert own not in imported_modules(_tree_of(other), ["q8trt", other]), (
                f"{own} and {other} import each other"
            )


def _tree_of(name: str) -> ast.AST:
    path = PACKAGE / f"{name}.py"
    return ast.parse((path if path.exists() else PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_seam_imports_tensorrt(path: Path) -> None:
    if path == PACKAGE / "engine" / "backend.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & {"tensorrt", "tensorrt_rtx"}


def test_no_file_grows_past_400_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_root_scripts_hold_no_work() -> None:
    for name in ("calibrate", "finetune", "build_engine", "benchmark"):
        assert len((ROOT / f"{name}.py").read_text().splitlines()) < 15
