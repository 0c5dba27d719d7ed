"""benchmarks/recipe_matrix.py: which cells there are, in what order they run, and what a failed one takes with it."""

from __future__ import annotations

import argparse
import importlib
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("recipe_matrix")


class Inline:
    """A process that does its work when it is started; `broken` cells leave no score."""

    order: list[str]
    broken: set[str]

    def __init__(self, target: Any, args: tuple[Any, argparse.Namespace]) -> None:
        self.cell, self.options = args
        self.exitcode: int | None = None

    def start(self) -> None:
        self.order.append(self.cell.name)
        self.exitcode = int(self.cell.name in self.broken)
        if not self.exitcode:
            folder = self.options.output_dir / self.cell.name
            folder.mkdir()
            (folder / "score.json").write_text("{}")


@pytest.fixture
def inline(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> type[Inline]:
    monkeypatch.setattr(Inline, "order", [], raising=False)
    monkeypatch.setattr(Inline, "broken", set(), raising=False)
    monkeypatch.setattr(matrix.multiprocessing, "get_context", lambda _: types.SimpleNamespace(Process=Inline))
    monkeypatch.setattr(matrix.time, "sleep", lambda _: None)
    return Inline


def options(folder: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"output_dir": folder, "workers": 3, "max_minutes": None, **more})


def test_every_recipe_method_and_seed_has_its_cell(matrix: Any) -> None:
    cells = matrix.cells()
    assert len({cell.name for cell in cells}) == len(cells) == 48
    sts_b = [cell for cell in cells if cell.task == "STS-B" and cell.needs]
    for recipe in ("linear", "attention", "full", "q8bert"):
        methods = Counter(
            (stage, not cell.options["distillation"])
            for cell in sts_b
            if recipe == cell.options["recipe"]
            for stage in cell.stages
        )
        assert methods == {("ptq", False): 3, ("int8", False): 3, ("int8", True): 3}
    assert Counter(cell.task for cell in cells if not cell.needs) == {"STS-B": 6, "MRPC": 3, "RTE": 3}
    for cell in cells:
        assert cell.needs is None or cell.needs.endswith(f"-fp32-{cell.seed}")


def test_the_low_bit_recipes_are_files_that_load(matrix: Any) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    from q8trt.quantization.recipe import load_recipe

    paths = {cell.options["recipe"] for cell in matrix.cells() if "recipe" in cell.options}
    bits = {load_recipe(path).name for path in paths if path.endswith(".yaml")}
    assert bits == {"weights-4bit", "embeddings-2bit"}


def test_what_others_need_comes_first_and_nothing_twice(matrix: Any, inline: Any, tmp_path: Path) -> None:
    done = tmp_path / "rte-fp32-44"
    done.mkdir()
    (done / "score.json").write_text("{}")
    assert matrix.Matrix(options(tmp_path)).compute() == 0
    assert len(inline.order) == 47
    assert "rte-fp32-44" not in inline.order
    for cell in matrix.cells():
        if cell.needs in inline.order:
            assert inline.order.index(cell.needs) < inline.order.index(cell.name)
    assert matrix.Matrix(options(tmp_path)).compute() == 0
    assert len(inline.order) == 47


def test_a_failed_cell_takes_those_that_need_it_and_no_other(
    matrix: Any, inline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inline.broken = {"mrpc-fp32-43", "sts-b-full-qat-42"}
    assert matrix.Matrix(options(tmp_path)).compute() == 3
    assert "mrpc-full-kd-43" not in inline.order
    assert len(inline.order) == 47
    said = capsys.readouterr().out
    assert "FAILED sts-b-full-qat-42" in said
    assert "FAILED mrpc-fp32-43" in said
    assert "not begun, mrpc-fp32-43 failed: mrpc-full-kd-43" in said
    assert "done mrpc-full-kd-42" in said


def test_when_time_is_up_nothing_is_begun(
    matrix: Any, inline: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.Matrix(options(tmp_path, max_minutes=-1.0)).compute() == 0
    assert not inline.order
    assert capsys.readouterr().out.count("not begun: ") == 48
