"""Provenance says enough to repeat a figure and nothing about the machine's folders."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import q8trt
from q8trt.hardware import provenance as module
from q8trt.hardware.provenance import command_line, portable, provenance


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty current folder."""
    folder = tmp_path / "home" / "someone" / "project"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_portable(here: Path) -> None:
    assert portable(here / "out" / "int8") == "out/int8"
    assert portable(here) == "."
    assert portable("/home/me/models/bert/model.onnx") == "bert/model.onnx"
    assert portable("/model.onnx") == "model.onnx"
    assert portable("file:///home/me/models/bert") == "models/bert"
    assert portable("C:\\Users\\me\\models\\bert") == "models/bert"
    for unchanged in ("out/int8", "../data", "bert-base-uncased", "https://example.org/a/b/c", "30", ""):
        assert portable(unchanged) == unchanged


def test_command_line(here: Path) -> None:
    argv = [str(here / "benchmark.py"), "--engine", str(here / "out"), "--data_dir=/home/me/glue/STS-B", "--sample"]
    assert command_line(argv) == "python benchmark.py --engine out --data_dir=.../STS-B --sample"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("FP32=/home/me/a/fp32,INT8=/home/me/b/int8", "FP32=.../fp32,INT8=.../int8"),
        ("int8:/home/me/b/int8", "int8:.../int8"),
        ("https://example.org/x/y/z", "https://example.org/x/y/z"),
        ("1x128,16x128", "1x128,16x128"),
        ("/home/me/my data/dev.tsv", ".../dev.tsv"),
        ("/tmp/model", ".../model"),  # not tmp/model, which looks like a path that can be typed
        ("../models/mine", "../models/mine"),
        ("two words", "'two words'"),
    ],
)
def test_arguments(here: Path, argument: str, expected: str) -> None:
    assert command_line(["benchmark.py", argument]) == f"python benchmark.py {expected}"


def test_programs(here: Path) -> None:
    assert command_line(["/opt/env/bin/q8trt", "--sample"]) == "q8trt --sample"
    assert command_line(["/opt/env/lib/site-packages/q8trt/__main__.py", "x"]) == "python -m q8trt x"


def test_provenance(here: Path) -> None:
    found = provenance([str(here / "benchmark.py"), "--engine", "/home/me/engines/int8"])
    assert set(found) == {"command", "git_commit", "git_dirty", "date_utc", "versions", "hardware", "platform"}
    assert datetime.fromisoformat(found["date_utc"]).utcoffset() == timedelta(0)
    assert found["versions"].keys() <= set(module.DISTRIBUTIONS)
    assert found["versions"]["q8trt"]
    assert found["versions"]["numpy"]
    assert set(found["hardware"]) == {"cpu", "cpu_features", "cores", "memory_gib", "gpus"}
    assert found["hardware"]["cores"] >= 1
    assert found["platform"]["python"].count(".") == 2
    # A path starts a string or follows a separator; "and/or" or "glue/STS-B" have none.
    text = json.dumps(found)
    assert not re.search(r"(^|[\s\"'=:,])/\w", text), text
    assert str(here) not in text


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_vnni\nflags\t\t: fpu avx2\n", ["avx2", "avx512f", "avx512_vnni"]),
        ("model name : a\nflags : amx_int8 avx_vnni avx2 avx512fx\nbugs : avx512f\n", ["avx2", "avx_vnni", "amx_int8"]),
        ("flags : fpu\n", []),
        ("Features : fp asimd\n", None),  # ARM
        (None, None),
    ],
)
def test_cpu_features(cpuinfo: str | None, features: list[str] | None, tmp_path: Path) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert module._cpu_features(str(tmp_path / "cpuinfo")) == features


def test_git(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert module._git(tmp_path) == (None, None)
    git("init")
    assert module._git(tmp_path) == (None, None)  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").mkdir()
    assert module._git(tmp_path) == (commit, False)
    assert module._git(tmp_path / "untracked") == (None, None)  # a package inside another project's checkout
    (tmp_path / "a").write_text("2")
    assert module._git(tmp_path) == (commit, True)


def test_without_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = provenance(["benchmark.py"])
    assert (found["git_commit"], found["git_dirty"], found["hardware"]["gpus"]) == (None, None, [])


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, q8trt.hardware.provenance; q8trt.hardware.provenance.provenance(['x.py']); "
        "print({'numpy', 'torch', 'onnx', 'tensorrt', 'transformers'} & set(sys.modules))"
    )
    root = Path(q8trt.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
