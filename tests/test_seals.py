"""Hashes of checkpoints: damage to any file that is read is named in one line, and permissions follow the umask."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from q8trt import files
from q8trt.errors import CheckpointError
from q8trt.models import checkpoints, load_config, load_tokenizer
from q8trt.tasks.glue import get_task
from q8trt.training import checkpoints as trainer_checkpoints

STSB = get_task("STS-B")
FLOAT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def saved(tiny_quantized: Callable[..., Any], tiny_model: Callable[..., Any], tiny_tokenizer: Any,
          tmp_path_factory: pytest.TempPathFactory) -> Path:  # fmt: skip
    """A float and a quantized checkpoint as a run holds them: fp32/ and int8/. Do not change them."""
    folder = tmp_path_factory.mktemp("saved")
    model, recipe = tiny_quantized()
    checkpoints.save_checkpoint(folder / "fp32", tiny_model(), tiny_tokenizer)
    checkpoints.save_checkpoint(folder / "int8", model, tiny_tokenizer, recipe)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved` of one's own."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


CHANGES = pytest.mark.parametrize("change", [flip, cut, Path.unlink], ids=["flipped", "cut", "missing"])


def load_float(folder: Path) -> Any:
    return checkpoints.load_finetuned(folder / "fp32", STSB)


def load_quantized(folder: Path) -> Any:
    return checkpoints.load_quantized(folder / "int8")


@CHANGES
@pytest.mark.parametrize(
    ("stage", "name", "load"),
    [
        *[("fp32", name, load_float) for name in FLOAT],
        *[("int8", name, load_quantized) for name in (*FLOAT, "quantization.json")],
        *[("fp32", name, lambda run: load_config(str(run / "fp32"))) for name in ("config.json",)],
        *[("fp32", name, lambda run: load_tokenizer(str(run / "fp32"))) for name in FLOAT[2:]],
        ("int8", "quantization.json", lambda run: checkpoints.load_pretrained(str(run / "int8"), STSB)),
    ],
)
def test_damage_is_named(stage: str, name: str, load: Callable[[Path], Any], change: Any, folder: Path) -> None:
    change(folder / stage / name)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / stage / name} is ")
    assert "make the checkpoint again" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 2, "files": {}}',
                                  '{"format": 1, "files": {"../x": {"bytes": 1, "sha256": "0"}}}',
                                  '{"format": 1, "files": {"a\\u0000": {"bytes": 1, "sha256": "0"}}}',
                                  '{"format": 1, "files": {"x": {"bytes": "1", "sha256": "0"}}}'])  # fmt: skip
def test_a_damaged_seal(text: str, folder: Path) -> None:
    (folder / "fp32" / "hashes.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"hashes\.json") as caught:
        load_float(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_hashes_is_read_as_it_is(folder: Path) -> None:
    for stage in ("fp32", "int8"):
        (folder / stage / "hashes.json").unlink()
        flip(folder / stage / "model.safetensors")
    load_float(folder)
    load_quantized(folder)


def test_files_that_are_added_do_not_matter(folder: Path) -> None:
    (folder / "fp32" / "README.md").write_text("# a card\n")
    load_float(folder)


def test_a_file_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("q8trt.files.seals.sha256", unreadable)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Permission denied"):
        load_float(folder)


def test_the_seal_holds_every_file(folder: Path) -> None:
    seal = json.loads((folder / "int8" / "hashes.json").read_text())
    assert seal["format"] == 1
    assert sorted(seal["files"]) == sorted((*FLOAT, "quantization.json"))
    for name, entry in seal["files"].items():
        path = folder / "int8" / name
        assert entry == {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


@pytest.fixture(params=[0o022, 0o077], ids=["022", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_permissions_follow_the_umask(
    umask: int, tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    checkpoints.save_checkpoint(tmp_path / "fp32", tiny_model(), tiny_tokenizer)
    assert permissions(tmp_path / "fp32") == dict.fromkeys((*FLOAT, "hashes.json"), 0o666 & ~umask)
    assert stat.S_IMODE((tmp_path / "fp32").stat().st_mode) == 0o777 & ~umask


def test_permissions_of_a_folder_that_is_written_whole(umask: int, tmp_path: Path) -> None:
    """Engine folders, archives that are unpacked and Triton's repositories are written so."""
    with files.atomic_folder(tmp_path / "engine") as temporary:
        (temporary / "model.plan").touch(0o600)
        (temporary / "1").mkdir(0o700)
        (temporary / "1" / "model.py").touch(0o600)
    assert permissions(tmp_path / "engine")["model.plan"] == 0o666 & ~umask
    assert permissions(tmp_path / "engine" / "1") == {"model.py": 0o666 & ~umask}


def test_permissions_of_a_trainers_checkpoint_follow_the_umask(
    umask: int, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    tiny_model().save_pretrained(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "model.safetensors").chmod(0o600)
    (tmp_path / "checkpoint-1" / "training_args.bin").write_bytes(b"a pickle that nothing reads")
    trainer_checkpoints.seal(tmp_path / "checkpoint-1")
    names = ("config.json", "model.safetensors", "hashes.json")
    assert permissions(tmp_path / "checkpoint-1") == dict.fromkeys(names, 0o666 & ~umask)
