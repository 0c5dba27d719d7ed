"""Precisions: parsed once, compared nowhere as text."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from q8trt.errors import ConfigError
from q8trt.quantization.precision import FORMATS, Precision, format_of

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ("q8trt", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "precision.py"
]
NAMES = {str(each) for each in Precision}


@pytest.mark.parametrize("precision", list(Precision))
def test_a_name_is_all_that_files_hold(precision: Precision) -> None:
    assert Precision.parse(str(precision)) is precision
    assert json.loads(json.dumps({"precision": precision})) == {"precision": precision.value}
    assert precision.label == precision.value.upper()


def test_facts() -> None:
    assert [each.is_quantized for each in Precision] == [False, False, True, True]
    assert [each.is_half for each in Precision] == [False, True, False, True]
    assert [each.elsewhere for each in Precision] == 2 * [Precision.FP32, Precision.FP16]
    options = [["--fp32"], ["--fp16"], ["--int8", "--fp32"], ["--int8", "--fp16"]]
    assert [each.options for each in Precision] == options
    assert [each for each in Precision if each.quantized is FORMATS["int8"]] == [Precision.INT8, Precision.INT8_FP16]
    assert format_of(8) is format_of(4) is FORMATS["int8"]


def test_unknown() -> None:
    with pytest.raises(ConfigError, match=r"^unknown precision 'int8-fp16'; known: fp32, fp16, int8, int8\+fp16$"):
        Precision.parse("int8-fp16")


def texts(node: ast.AST) -> set[str]:
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def is_precision(node: ast.AST) -> bool:
    return bool(re.search(r"\bprecisions?$", ast.unparse(node)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_precision_is_told_by_its_text(path: Path) -> None:
    """No name of a precision is compared, cut or passed; names of stages, dtypes and options are others' words."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            assert not (any(map(is_precision, sides)) and NAMES & set().union(*map(texts, sides))), where
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("startswith", "endswith", "split", "upper"):
                assert not is_precision(node.func.value), where
            passed = [each.value for each in node.keywords if each.arg == "precision"]
            assert not any(NAMES & texts(each) for each in passed), where
        if isinstance(node, ast.Constant):
            assert node.value not in ("int8+fp16", "int8 + fp16"), where
