"""The C++ example: compiled against TensorRT's headers where they are, and run over stand-ins for TensorRT and CUDA."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE

SOURCE = Path(__file__).parents[1] / "examples" / "cpp" / "q8trt_run.cpp"
FAKES = Path(__file__).parent / "cpp_fakes"
JSON_HEADER = "nlohmann/json.hpp"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
PROFILES = [{"min": [1, 1], "opt": [1, 4], "max": [4, 4]}, {"min": [1, 1], "opt": [1, 8], "max": [2, 8]}]


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler")
    probe = subprocess.run(
        [found, "-fsyntax-only", "-x", "c++", "-"], input=f"#include <{JSON_HEADER}>", text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    if probe.returncode:
        pytest.skip("no nlohmann/json.hpp: apt install nlohmann-json3-dev")
    return found


def headers(name: str, *places: str) -> Path:
    """The folder of a header. Skips where there is none."""
    folders = [Path(place) for place in places if place]
    found = next((folder for folder in folders if (folder / name).is_file()), None)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def test_it_compiles_against_tensorrt() -> None:
    tensorrt = headers(
        "NvInfer.h", f"{os.environ.get('TENSORRT_ROOT', '/nowhere')}/include", "/usr/include/x86_64-linux-gnu",
        "/usr/include/aarch64-linux-gnu", "/usr/include",
    )  # fmt: skip
    cuda = headers("cuda_runtime_api.h", f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/include", "/usr/include")
    system = [word for folder in (tensorrt, cuda) for word in ("-isystem", str(folder))]
    subprocess.run([compiler(), *STRICT, "-fsyntax-only", *system, str(SOURCE)], check=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpp") / "q8trt_run"
    subprocess.run(
        [compiler(), *STRICT, "-fsanitize=address,undefined", f"-I{FAKES}", str(SOURCE), "-o", str(path)],
        check=True, timeout=PATIENCE,
    )  # fmt: skip
    return path


def write_engine(folder: Path, labels: tuple[str, ...] = (), inputs: int = 3) -> Path:
    folder.mkdir()
    plan = f"{len(labels) or 1} {inputs}".encode()
    (folder / "model.plan").write_bytes(plan)
    manifest = {
        "inputs": ["input_ids", "attention_mask", "token_type_ids"][:inputs],
        "model": {"num_labels": len(labels) or 1, "pad_token_id": 99},
        "task": {"is_regression": not labels, "labels": labels},
        "profiles": PROFILES,
        "files": {"model.plan": {"bytes": len(plan)}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def run(program: Path, *words: Any) -> tuple[int, str, str]:
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stdout, done.stderr


def test_rows_are_padded_and_the_tightest_profile_is_taken(program: Path, tmp_path: Path) -> None:
    """See the stand-in for what it computes; ids behind the first [SEP] (2) are of type 1."""
    engine = write_engine(tmp_path / "engine")
    assert run(program, engine, "1,50,2", "1,2") == (0, "0.53\n0.03\n", "")
    code, out, _ = run(program, engine, "1,50,2,60,70,2", "1,2")
    assert code == 0
    np.testing.assert_allclose([float(line) for line in out.split()], [10 + 1.85 + 3, 10.03], rtol=1e-5)
    code, out, _ = run(program, engine, *["1,2"] * 4)
    assert (code, len(out.split())) == (0, 4)


def test_a_model_without_token_types(program: Path, tmp_path: Path) -> None:
    assert run(program, write_engine(tmp_path / "engine", inputs=2), "1,50,2,60,2")[:2] == (0, "11.15\n")


def test_a_classifier_names_its_label(program: Path, tmp_path: Path) -> None:
    code, out, _ = run(program, write_engine(tmp_path / "engine", ("no", "maybe", "yes")), "1,50,2")
    logits = 0.53 * np.arange(1, 4)
    label, probability = out.split()
    assert (code, label) == (0, "yes")
    assert float(probability) == pytest.approx(np.exp(logits[2]) / np.exp(logits).sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1,2"] * 5, "no profile of the plan takes 5x2"),
        ([",".join(["1"] * 9)], "no profile of the plan takes 1x9"),
        (["1,x"], "'1,x' is no list of ids"),
        (["-1"], "'-1' is no list of ids"),
        ([""], "a row has no token ids"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(program: Path, tmp_path: Path, words: list[str], message: str) -> None:
    code, out, err = run(program, write_engine(tmp_path / "engine"), *words)
    assert (code, out, err) == (2, "", f"q8trt_run: error: {message}\n")


def test_a_folder_that_cannot_run(program: Path, tmp_path: Path) -> None:
    assert run(program, "nowhere", "1")[2] == "q8trt_run: error: nowhere/manifest.json cannot be opened\n"
    engine = write_engine(tmp_path / "engine")
    (engine / "model.plan").write_bytes(b"longer than it was")
    assert run(program, engine, "1") == (2, "", "q8trt_run: error: model.plan has not the manifest's size\n")
    (engine / "model.plan").write_bytes(b"x y")
    assert run(program, engine, "1")[2] == (
        "TensorRT: the plan is of another version\nq8trt_run: error: the plan cannot be loaded on this machine\n"
    )
    assert run(program)[0] == 2
