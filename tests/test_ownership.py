"""q8trt replaces folders and files that it wrote, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from q8trt import files
from q8trt.engine.folder import ENGINE_FOLDER
from q8trt.errors import ConfigError


def engine(folder: Path, *more: str) -> Path:
    """An engine folder by its manifest, with `more` files."""
    folder.mkdir(parents=True)
    listed = ("model.onnx", "model.plan", "tokenizer.json")
    manifest = {"q8trt_version": "1", "files": {name: {"sha256": "", "bytes": 0} for name in listed}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in (*listed, *more):
        (folder / name).write_text("x")
    return folder


def refusal(path: str | Path, overwrite: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        files.replaceable_folder(path, ENGINE_FOLDER, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_or_empty_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "a/b/new"):
        assert files.replaceable_folder(tmp_path / name, ENGINE_FOLDER, overwrite=False) == tmp_path / name
        assert files.new_folder(tmp_path / name) == tmp_path / name


def test_an_engine_is_replaced_with_overwrite_only(tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine")
    assert "is an engine folder already; add --overwrite to replace it" in refusal(folder)
    assert files.replaceable_folder(folder, ENGINE_FOLDER, overwrite=True) == folder
    with pytest.raises(ConfigError, match=r"is not replaced: it contains 'manifest\.json'; give a new folder"):
        files.new_folder(folder)


def test_reports_caches_and_the_card_are_ours(tmp_path: Path) -> None:
    ours = ("benchmark.json", "benchmark.html", "parity.json", "MODEL_CARD.md", "SHA256SUMS", ".runtime-1-2-gpu.cache")
    folder = engine(tmp_path / "engine", *ours, ".model.plan.abcd1234.tmp", ".benchmark.json.x.tmp")
    assert files.replaceable_folder(folder, ENGINE_FOLDER, overwrite=True) == folder


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "mine.json", ".hidden", ".backup.old", ".my.notes.tmp", "model.onnx.bak", "run.json", "config.json"],
)
def test_a_file_of_the_users_is_named_and_kept(tmp_path: Path, name: str) -> None:
    folder = engine(tmp_path / "engine", name)
    for overwrite in (False, True):
        assert f"is not replaced: it contains {name!r}, which q8trt did not write; move" in refusal(folder, overwrite)


@pytest.mark.parametrize("name", ["docs", "model.plan", "benchmark.json"])
def test_a_folder_within_is_the_users_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = engine(tmp_path / "engine")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert f"contains {name!r}" in refusal(folder, overwrite=True)


@pytest.mark.parametrize(
    "manifest", [None, "[]", "{}", '{"files": {}}', '{"files": ["a"], "q8trt_version": "1"}', '{"q8trt_version": "1"}']
)
def test_another_kind_of_folder(tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    for overwrite in (False, True):
        assert "is not an engine folder of q8trt; give a new folder, or an empty one" in refusal(folder, overwrite)


def test_an_engine_whose_manifest_is_damaged_may_be_rebuilt(tmp_path: Path) -> None:
    folder = engine(tmp_path / "engine")
    (folder / "manifest.json").write_text('{"q8trt_version": "1", "fil')
    assert files.replaceable_folder(folder, ENGINE_FOLDER, overwrite=True) == folder
    (folder / "thesis.tex").touch()
    assert "contains 'thesis.tex'" in refusal(folder, overwrite=True)
    (folder / "thesis.tex").unlink()
    (folder / "model.onnx").unlink()
    assert "is not an engine folder" in refusal(folder, overwrite=True)


@pytest.mark.parametrize("path", [".", "..", "/", "../here", "", "../here/sub/.."])
def test_the_current_folder_and_those_above_it(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine(tmp_path / "here")
    (tmp_path / "here" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for overwrite in (False, True):
        assert "is the current folder or contains it" in refusal(path, overwrite)


def test_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The empty volume of a container cannot be renamed; without the check the build fails after all its minutes."""
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "volume")
    assert "is a mount point, which cannot be replaced; give a folder inside it" in refusal(tmp_path / "volume")
    assert files.new_folder(tmp_path / "volume" / "engine")


def test_a_link_counts_as_what_it_points_to(tmp_path: Path) -> None:
    folder = engine(tmp_path / "disk" / "engine")
    (tmp_path / "link").symlink_to(folder)
    assert "is an engine folder already" in refusal(tmp_path / "link")
    assert files.replaceable_folder(tmp_path / "link", ENGINE_FOLDER, overwrite=True) == folder
    (folder / "notes.txt").touch()
    assert "notes.txt" in refusal(tmp_path / "link", overwrite=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "new")
    assert f"is a link to {tmp_path / 'disk' / 'new'}, which does not exist" in refusal(tmp_path / "dangling")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "--output_dir" in refusal(tmp_path / "loop")
    assert "is not a usable path" in refusal("a\0b")


def test_a_file_or_a_locked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written: " in refusal(tmp_path / "file")
    assert f"{tmp_path / 'file'} is a file" in refusal(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert refusal(tmp_path / "new").endswith(f"no permission for {tmp_path}; give a path that you may write to")
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert f"written: {tmp_path} is on a read-only file system; give a path" in refusal(tmp_path / "new")


# Files


def test_a_file_of_the_users_is_replaced_with_overwrite_only(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert files.writable_file(path, "--write_recipe") == path
    path.write_text("mine")
    with pytest.raises(
        ConfigError, match=r"--write_recipe: .*mine\.yaml exists already, and is not replaced; add --over"
    ):
        files.writable_file(path, "--write_recipe")
    assert files.writable_file(path, "--write_recipe", overwrite=True) == path
    (tmp_path / "link").symlink_to(path)
    assert files.writable_file(tmp_path / "link", "--write_recipe", overwrite=True) == path


@pytest.mark.parametrize(("path", "says"), [(".", "is a folder"), ("/dev/null", "is not a regular file")])
def test_neither_a_folder_nor_a_device(path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        files.writable_file(path, "--output", overwrite=True)


def test_a_report_replaces_a_report_of_its_kind(tmp_path: Path) -> None:
    data, page = tmp_path / "benchmark.json", tmp_path / "benchmark.html"

    def check() -> None:
        files.check_report(data, [page], keys=("schema", "rows"), option="--output_dir", hint="choose another --name")

    check()
    data.write_text('{"schema": 2, "rows": [], "more": 1}')
    page.touch()
    check()
    for text in ('{"schema": 2}', "[1]", "not JSON"):
        data.write_text(text)
        with pytest.raises(ConfigError, match=r"benchmark\.json exists already, and is not replaced; choose another"):
            check()
    data.unlink()
    with pytest.raises(ConfigError, match=r"benchmark\.html exists already"):  # a page without its data is not ours
        check()


def test_json_that_cannot_be_read_is_not_ours(tmp_path: Path) -> None:
    assert not files.json_with("a")(tmp_path / "none")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert not files.json_with("a")(tmp_path / "deep.json")
