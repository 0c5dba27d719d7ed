"""The rooms of docs/architecture.md: what each of them exports, and that every import goes down."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "q8trt"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
#: Rooms that are a package; the others are a module.
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@dataclass(frozen=True)
class Import:
    """An import of another room, at the top of a module or inside a function.

    Attributes:
        where: the file and line, for errors.
        importer: the room that imports.
        room: the room that it imports from.
        names: what it imports, a path below `room`; () for the room itself.
    """

    where: str
    importer: str
    room: str
    names: tuple[str, ...]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def targets(path: Path, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (dotted path below q8trt, the name that it is bound to) for each name that `node` imports from q8trt."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, alias.asname or "") for alias in node.names if alias.name.startswith("q8trt."))
    elif isinstance(node, ast.ImportFrom):
        package = ["q8trt", *path.relative_to(PACKAGE).parts[:-1]]
        base = [*package[: len(package) - node.level + 1]] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        if stem == "q8trt" or stem.startswith("q8trt."):
            yield from ((f"{stem}.{alias.name}", alias.asname or alias.name) for alias in node.names)


def imports() -> Iterator[Import]:
    """Yield every import of another room; an attribute of an imported module counts as imported."""
    for path, tree in TREES.items():
        room, modules = room_of(path), {}
        for node in ast.walk(tree):
            for target, name in targets(path, node):
                _, other, *names = target.split(".")
                if other not in (room, "__version__"):
                    modules[name] = (other, tuple(names))
                    yield Import(f"{path.relative_to(ROOT)}:{node.lineno}", room, other, tuple(names))  # type: ignore[attr-defined]
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                other, names = modules[node.value.id]
                yield Import(f"{path.relative_to(ROOT)}:{node.lineno}", room, other, (*names, node.attr))


IMPORTS = list(imports())


def table() -> list[str]:
    """The rooms in the order of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| ([^|]+) \|", text, flags=re.MULTILINE)
    return [name for names in rows for name in re.findall(r"`(\w+)`", names)]


def test_the_table_names_every_room_once() -> None:
    assert sorted(table()) == sorted({path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | {*PACKAGES})


def test_every_import_goes_up_the_table() -> None:
    """So there is no circle either."""
    order = {room: number for number, room in enumerate(table())}
    assert [each for each in IMPORTS if order[each.room] >= order[each.importer]] == []


def test_no_room_imports_what_is_private_to_another() -> None:
    private = [each for each in IMPORTS if any(re.match(r"_(?!_)", name) for name in each.names)]
    assert private == []


@pytest.mark.parametrize("room", PACKAGES)
def test_a_room_says_what_it_is_for_and_what_it_exports(room: str) -> None:
    module = importlib.import_module(f"q8trt.{room}")
    assert module.__doc__
    submodules = {path.stem for path in (PACKAGE / room).glob("*") if path.suffix == ".py" or path.is_dir()}
    for name in module.__all__:
        assert not name.startswith("_")
        assert hasattr(module, name) or name in submodules


def test_rooms_are_light_to_import() -> None:
    code = (
        f"import importlib, sys\nfor room in {PACKAGES}:\n    importlib.import_module('q8trt.' + room)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime', 'modelopt', 'rich', 'matplotlib', 'jinja2'}\n"
        "print(*(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_other_rooms_import_what_a_room_exports() -> None:
    """A name of its ``__all__``, or one from a module that it names there."""
    exported = {room: set(importlib.import_module(f"q8trt.{room}").__all__) for room in PACKAGES}
    hidden = [
        each for each in IMPORTS if each.names and each.room in exported and each.names[0] not in exported[each.room]
    ]
    assert hidden == []


def test_only_the_seam_imports_tensorrt() -> None:
    importers = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if {name.split(".")[0] for name in names} & {"tensorrt", "tensorrt_lean", "tensorrt_rtx"}:
                importers.add(path)
    assert importers <= {PACKAGE / "engine" / "backend.py"}


@pytest.mark.parametrize("name", ["calibrate", "finetune", "build_engine", "benchmark"])
def test_a_root_script_runs_the_command_of_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from q8trt import __main__

    monkeypatch.setattr(__main__, "run", lambda command: f"ran {command}")
    with pytest.raises(SystemExit, match=f"^ran {name.replace('_', '-')}$"):
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")


def test_documents_name_files_that_exist() -> None:
    sources = [str(path.relative_to(ROOT)) for folder in ("q8trt", "tests", "benchmarks", "examples", ".") for path in
               (ROOT / folder).glob("**/*.py" if folder != "." else "*.py")]  # fmt: skip
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for name in re.findall(r"`([\w/.-]+\.py)`", document.read_text(encoding="utf-8")):
            assert any(f"/{source}".endswith(f"/{name}") for source in sources), f"{document.name}: {name}"


def test_imported_modules_exist() -> None:
    """Those that only annotations need, too."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("q8trt."):
                module = ROOT.joinpath(*node.module.split("."))  # type: ignore[union-attr]
                assert module.with_suffix(".py").exists() or module.is_dir(), f"{path}:{node.lineno}: {node.module}"


def _top_level_names(path: Path) -> set[str]:
    """The names that a module defines or imports at its top level, those under `if` and `try` included."""
    names: set[str] = set()
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            nodes += [*node.body, *node.orelse, *getattr(node, "finalbody", ())]
            nodes += [each for handler in getattr(node, "handlers", ()) for each in handler.body]
    return names


@pytest.mark.parametrize(
    "script", sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py")), ids=str
)
def test_scripts_import_names_that_exist(script: Path) -> None:
    """Nothing else runs the benchmarks in CI."""
    for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "q8trt":
            place = ROOT.joinpath(*str(node.module).split("."))
            module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            assert module.is_file(), f"{script}:{node.lineno}: {node.module}"
            known = _top_level_names(module)
            for alias in node.names:
                is_module = place.is_dir() and ((place / alias.name).is_dir() or (place / f"{alias.name}.py").is_file())
                lazy = "__getattr__" in known  # q8trt itself
                assert alias.name in known or is_module or lazy, f"{script}:{node.lineno}: {node.module}.{alias.name}"
