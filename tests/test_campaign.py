"""The campaign's driver judges each ending as it is."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaign.driver import Case, Process, run_case
from benchmarks.campaign.mutations import json_bytes, places, replaced, without
from q8trt.errors import ConfigError


def refuse(folder: Path) -> None:
    raise ConfigError("--x is wrong")


def fail(folder: Path) -> None:
    raise RuntimeError("no line")


def kill(folder: Path) -> None:
    signal.raise_signal(signal.SIGKILL)


def say_two(folder: Path) -> None:
    print("q8trt: error: first", file=sys.stderr)
    raise ConfigError("second")


def lose(folder: Path) -> None:
    (folder / "rows.csv").unlink()
    raise ConfigError("too late")


ENDINGS: list[tuple[Callable[[Path], Any], dict[str, Any], str, str]] = [
    (lambda folder: None, {}, "ok", ""),
    (lambda folder: None, {"oracle": lambda outcome, folder: "not so"}, "wrong", "not so"),
    (lambda folder: print("\x1b[31m"), {}, "wrong", "control"),
    (refuse, {}, "refused", "--x is wrong"),
    (say_two, {}, "unclear", "2 lines"),
    (fail, {}, "traceback", "no line"),
    (kill, {}, "crash", "signal 9"),
    (lambda folder: time.sleep(60), {"seconds": 0.3}, "hang", "ended"),
    (lambda folder: bytearray(b"x") * 2**30 and time.sleep(60), {"mib": 64}, "memory", "MiB"),
    (lose, {}, "damaged", "rows.csv was removed"),
    (lambda folder: (folder / "new").write_text(""), {}, "damaged", "new was left"),
    (lambda folder: (folder / "new").write_text(""), {"writes": ("new",)}, "ok", ""),
]


@pytest.mark.parametrize(("call", "options", "kind", "words"), ENDINGS)
def test_each_ending(tmp_path: Path, call: Any, options: dict[str, Any], kind: str, words: str) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    case = Case("x", call, lambda folder: (folder / "rows.csv").write_text("a,b\n"), **options)
    verdict, _ = run_case(case, folder)
    assert (verdict.kind, words in verdict.reason) == (kind, True), verdict


def test_a_real_process_gets_its_signal(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    case = Case("x", (), process=Process(command, signal=signal.SIGTERM, after=0.3), exits=(-15,))
    verdict, outcome = run_case(case, folder)
    assert (verdict.kind, outcome.code) == ("refused", -15)


def test_mutations_change_one_place() -> None:
    document = {"a": [1, {"b": 2}]}
    assert list(places(document)) == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b")]
    assert replaced(document, ("a", 1, "b"), None) == {"a": [1, {"b": None}]}
    assert without(document, ("a", 0)) == {"a": [{"b": 2}]}
    assert json_bytes({"x": float("nan"), "y": "\ud800"}) == b'{"x": NaN, "y": "\\ud800"}'
