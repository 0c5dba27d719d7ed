"""Bad input: one line on stderr, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_data import SHORT, write_mrpc

from q8trt.cli.main import main

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)


@pytest.mark.parametrize(
    ("command", "argv", "says"),
    [
        ("finetune", ["--task", "STSB2"], ["STSB2", "did you mean 'STS-B'?"]),
        ("finetune", ["--task", "MNIL"], ["did you mean 'MNLI'?"]),
        ("calibrate", ["--task", "qpq", "--model_name_or_path", "x"], ["did you mean 'QQP'?"]),
        ("finetune", [], ["--task is missing", "STS-B"]),
        ("finetune", ["--task", "STS-B", "--learning_rat", "1"], ["--learning_rat", "did you mean '--learning_rate'?"]),
        (
            "finetune",
            ["--task", "STS-B", "--epochs", "1"],
            ["unknown argument '--epochs' (did you mean '--num_train_epochs' or '--qat_epochs'?); see"],
        ),
        ("quantize", ["model", "--task", "STS-B"], ["unknown argument '--task'; see q8trt quantize --help"]),
        ("build-engine", ["--int"], ["did you mean '--int8'?"]),
        ("finetune", ["--task", "STS-B", "--save_steps", "250"], ["--save_steps 250", "--eval_steps 200"]),
        ("finetune", ["--resume", "--task", "STS-B"], ["drop --task"]),
        ("finetune", ["--resume=x", "--learning_rate", "1"], ["drop --learning_rate"]),
        ("finetune", ["--resume"], ["no unfinished run under runs/"]),
        ("finetune", ["--resume", "nowhere"], ["nowhere is not a run folder"]),
        ("finetune", ["--task", "STS-B", "--max_steps", "0"], ["--max_steps 0"]),
        ("finetune", ["--task", "STS-B", "--max_steps", "x"], ["invalid int value: 'x'"]),
        ("finetune", ["--task", "STS-B", "--fp16", "--bf16"], ["exclude each other"]),
        ("finetune", ["--task", "STS-B", "--recipe", "liner"], ["liner"]),
        ("finetune", ["--demo", "--data_dir", "x"], ["--data_dir and --sample exclude each other"]),
        ("calibrate", [], ["no run", "python finetune.py --task STS-B", "--demo"]),
        ("calibrate", ["--data_dir", "x"], ["--data_dir needs --task"]),
        ("build-engine", ["--int8"], ["no run", "python finetune.py --task STS-B", "--demo"]),
        ("build-engine", ["--fp16", "--fp32"], ["--fp16 and --fp32 exclude each other"]),
        ("build-engine", ["--int8", "--fp16", "--fp32"], ["--fp16 and --fp32 exclude each other"]),
        ("build-engine", ["--target", "tpu"], ["--target", "'gpu'", "'cpu'"]),
        ("build-engine", ["--checkpoint", "nowhere"], ["nowhere does not exist"]),
        ("build-engine", ["--max_shapes", "axb"], ["'axb'", "16x128"]),
        ("benchmark", [], ["no engine under runs/", "python build_engine.py"]),
        ("benchmark", ["--engine", "nowhere"], ["nowhere does not exist"]),
        ("benchmark", ["--shapes", "1y3"], ["'1y3'"]),
        ("doctor", ["--fix"], ["--fix"]),
    ],
)  # fmt: skip
def test_bad_options(command: str, argv: list[str], says: list[str], refused: Refused) -> None:
    line = refused(command, *argv)
    assert [words for words in says if words not in line] == [], line


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetun"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [err.rstrip("\n")]
    assert "unknown command 'finetun' (did you mean 'finetune'?)" in err


def _change(path: Path, number: int, line: str) -> None:
    lines = path.read_text().split("\n")
    lines[number - 1] = line
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: shutil.rmtree(data), ["no such folder"]),
        (lambda data: [path.unlink() for path in data.iterdir()], ["no train.tsv of STS-B"]),
        (lambda data: (data / "dev.tsv").unlink(), ["no dev.tsv of STS-B", "train.tsv, dev.tsv"]),
        (lambda data: (data / "train.tsv").write_text(""), ["train.tsv:1", "sentence1"]),
        (lambda data: _change(data / "train.tsv", 5, "3\tone text"), ["train.tsv:5: 2 tab-separated fields, expected 4"]),
        (lambda data: _change(data / "dev.tsv", 3, "1\tdog\tcat\t5.5"), ["dev.tsv:3: score '5.5'", "from 0 to 5"]),
        (lambda data: _change(data / "dev.tsv", 3, "1\tdog\tcat\thigh"), ["dev.tsv:3: score 'high'"]),
        (lambda data: (data / "dev.tsv").write_bytes(b"\xff\xfe\x00"), ["dev.tsv:1: not UTF-8"]),
    ],
    ids=["no folder", "empty folder", "no file", "empty file", "fields", "score out of range", "no score", "not UTF-8"],
)  # fmt: skip
def test_bad_data(
    damage: Callable[[Path], Any], says: list[str], options: list[str], data: Path, refused: Refused
) -> None:
    damage(data)
    line = refused("finetune", *options)
    assert [words for words in says if words not in line] == [], line


@pytest.mark.parametrize("command", ["finetune", "calibrate"])
def test_missing_data_are_named_before_torch_is_loaded(
    command: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import raises ImportError
    line = refused(command, "--task", "custom", "--train_file", "trian.csv", "--validation_file", "dev.csv")
    assert "trian.csv: no such file" in line
    assert "glu: no such folder; give --data_dir" in refused(command, "--task", "STS-B", "--data_dir", "glu")


def test_label_outside_the_task(tiny_checkpoint: Path, tmp_path: Path, refused: Refused) -> None:
    data = write_mrpc(tmp_path / "mrpc")
    _change(data / "train.tsv", 4, "2\tdog\tcat")
    line = refused(
        "finetune", "--task", "MRPC", "--data_dir", "mrpc", "--model_name_or_path", str(tiny_checkpoint), *SHORT
    )
    assert "train.tsv:4: label '2', expected one of 0, 1" in line


def test_without_hub_data(refused: Refused, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from q8trt.tasks.data import hub

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(hub, "_load", unreachable)
    line = refused("finetune", "--task", "STS-B", "--model_name_or_path", str(tiny_checkpoint))
    assert "--data_dir" in line
    assert "--demo" in line


def test_without_hub_model(refused: Refused, data: Path) -> None:
    line = refused(
        "finetune", "--task", "STS-B", "--data_dir", str(data), "--model_name_or_path", "nobody/no-such-bert"
    )
    assert "'nobody/no-such-bert' is neither a folder here nor reachable" in line
    assert "'minilm'" in line


def test_fp16_without_gpu(refused: Refused, options: list[str]) -> None:
    assert "--fp16" in refused("finetune", *options, "--fp16")


def test_positions_beyond_the_model(refused: Refused, options: list[str]) -> None:
    assert "max_seq_length 512" in refused("finetune", *options, "--max_seq_length", "512")


def _save_gpt2(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8}')


def _save_without_weights(folder: Path, good: Path) -> None:
    shutil.copytree(good, folder)
    (folder / "model.safetensors").unlink()


def _save_truncated(folder: Path, good: Path) -> None:
    shutil.copytree(good, folder)
    os.truncate(folder / "model.safetensors", 1000)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda folder, good: _save_gpt2(folder),
            ["type 'gpt2', a decoder that generates text, not BERT-like", "bert"],
        ),
        (lambda folder, good: folder.mkdir(), ["has no config.json"]),
        (_save_without_weights, ["no model.safetensors"]),
        (_save_truncated, ["not a usable checkpoint"]),
    ],
    ids=["gpt2", "empty", "no weights", "truncated weights"],
)
@pytest.mark.parametrize("option", ["--model_name_or_path", "--from_fp32"])
def test_unusable_checkpoint(
    make: Callable[[Path, Path], None], says: list[str], option: str,
    options: list[str], tiny_checkpoint: Path, tmp_path: Path, refused: Refused,
) -> None:  # fmt: skip
    make(tmp_path / "model", tiny_checkpoint)
    line = refused("finetune", *options, option, "model")
    assert [words for words in says if words not in line] == [], line


def test_fp32_checkpoint_of_another_task(
    tmp_path: Path, options: list[str], refused: Refused, tiny_checkpoint_of: Any
) -> None:
    line = refused("finetune", *options, "--from_fp32", str(tiny_checkpoint_of("bert", 3)))
    assert "head of 3 outputs, STS-B needs 1" in line


def test_existing_run_is_neither_replaced_nor_removed(
    refused: Refused, options: list[str], tmp_path: Path, calibrated: Path
) -> None:
    shutil.copytree(calibrated, tmp_path / "mine")
    before = (tmp_path / "mine/run.json").read_bytes()
    assert "mine is a run already" in refused("finetune", *options, "--output_dir", "mine")
    assert (tmp_path / "mine/run.json").read_bytes() == before
    assert (tmp_path / "mine/ptq/model.safetensors").is_file()


def test_users_own_folder_survives_an_error(refused: Refused, options: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    refused("finetune", *options, "--output_dir", "mine", "--fp16")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_runs_dir_that_is_a_file(refused: Refused, options: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    line = refused("finetune", *options, "--precision", "fp32", "--max_steps", "1")
    assert "runs" in line
    assert "cannot be written" in line
