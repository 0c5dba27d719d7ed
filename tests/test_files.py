"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from q8trt import files
from q8trt.files import atomic


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write through pathlib leaves half of its data, then fails as on a full disk."""

    def half_then_fail(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", half_then_fail)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: half_then_fail(path, text.encode()))


def test_file_is_written_whole_and_makes_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.bin"
    with files.atomic_file(target) as temporary:
        temporary.write_bytes(b"first")
        assert temporary.parent == target.parent  # the same file system, or a rename would copy
        assert not target.exists()
    assert target.read_bytes() == b"first"
    assert names(target.parent) == ["file.bin"]


def test_file_replaces_an_older_longer_one(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("much longer than what follows")
    files.write_text(target, "short é")
    assert target.read_bytes() == "short é".encode()
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_file_failure_leaves_the_old_one_and_no_trace(tmp_path: Path, exception: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with files.atomic_file(target) as temporary:
            temporary.write_text("half of the ne")
            raise exception

    with pytest.raises(exception):
        fail()
    assert names(tmp_path) == ["file.txt"]
    assert target.read_text() == "old"


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    ("write", "value"),
    [(files.write_bytes, b"x" * 100), (files.write_text, "x" * 100), (files.write_json, {"key": "x" * 100})],
    ids=["bytes", "text", "json"],
)
def test_full_disk_leaves_no_file(tmp_path: Path, write: object, value: object) -> None:
    with pytest.raises(OSError) as caught:
        write(tmp_path / "new.json", value)  # type: ignore[operator]
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


@pytest.mark.usefixtures("full_disk")
def test_full_disk_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(OSError), files.atomic_folder(folder) as temporary:
        (temporary / "new").write_bytes(b"x" * 100)
    assert names(tmp_path) == ["model", "model/old"]


def test_folder_replaces_whole(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "model"
    for content in ("one", "two"):
        with files.atomic_folder(folder) as temporary:
            assert temporary.parent == folder.parent
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["runs", "runs/model", "runs/model/two"]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_folder_failure_keeps_the_old_one(tmp_path: Path, exception: type[BaseException]) -> None:
    folder = tmp_path / "model"
    with files.atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("old")

    def fail() -> None:
        with files.atomic_folder(folder) as temporary:
            (temporary / "weights").write_text("new")
            raise exception

    with pytest.raises(exception):
        fail()
    assert names(tmp_path) == ["model", "model/weights"]
    assert (folder / "weights").read_text() == "old"


def test_folder_that_cannot_be_renamed_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of the two renames fails: the old folder must come back under its name."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(errno.EACCES, "refused")
        return replace(path, target)

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)  # as on a file system without renameat2's exchange
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="refused"), files.atomic_folder(folder) as temporary:
        (temporary / "weights").write_text("new")
    assert names(tmp_path) == ["model", "model/weights"]
    assert (folder / "weights").read_text() == "old"


def test_folder_replaces_a_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with files.atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
    assert names(tmp_path) == ["model", "model/weights"]


@pytest.mark.parametrize("dangling", [False, True])
def test_folder_replaces_a_link_and_not_what_it_points_to(tmp_path: Path, dangling: bool) -> None:
    if not dangling:
        (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    with files.atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
    assert names(tmp_path) == [*([] if dangling else ["elsewhere"]), "model", "model/weights"]
    assert not (tmp_path / "model").is_symlink()


def test_a_path_below_a_file_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        files.write_text(tmp_path / "file" / "below", "text")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_permissions_are_those_of_an_ordinary_create(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "file", "text")
        with files.atomic_folder(tmp_path / "folder"):
            pass
        (tmp_path / "ordinary_file").touch()
        (tmp_path / "ordinary_folder").mkdir()
        assert os.umask(umask) == umask  # the process's own umask is as it was
    finally:
        os.umask(before)
    mode = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert mode["file"] == mode["ordinary_file"] == 0o666 & ~umask
    assert mode["folder"] == mode["ordinary_folder"] == 0o777 & ~umask


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("-inf")]])
def test_json_refuses_what_json_has_not(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "value.json", {"score": value})
    assert names(tmp_path) == []


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"name": "naïve", "scores": [0.1, 86.76, None], "nested": {"b": 1, "a": True}}
    files.write_json(tmp_path / "value.json", value)
    assert files.read_json(tmp_path / "value.json") == value
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert "naïve" in text
    assert text.endswith("}\n")
    assert text.index('"b"') < text.index('"a"')  # in the order given


def test_json_errors_reach_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(files.MalformedError, match="not JSON"):
        files.read_json(tmp_path / "half.json")


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_sha256(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "data").write_bytes(data)
    assert files.sha256(tmp_path / "data") == hashlib.sha256(data).hexdigest()


def test_sha256_known_answer(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "data").write_bytes(b"abc")
    assert files.sha256(tmp_path / "data") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_failing_clean_up_does_not_hide_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_nothing(path: object, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError("clean-up failed")

    monkeypatch.setattr(shutil, "rmtree", remove_nothing)
    with pytest.raises(ValueError, match="the cause"), files.atomic_folder(tmp_path / "model"):
        raise ValueError("the cause")


def test_yaml_has_no_merge_keys_and_no_key_twice() -> None:
    """Each level of merges doubles an object, before any limit can count it; of equal keys the last would win."""
    levels = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
    for text, words in (
        (f"a0: &a0 {{k: v}}\n{levels}", "merge keys"),
        ("a: 1\nb: 2\na: 3\n", "key 'a' comes twice"),
        ("x: {a: 1, a: 1}\n", "key 'a' comes twice"),
        ('x: "\\ud800"\n', "surrogate"),
        ('"\\ud800": 1\n', "surrogate"),
    ):
        with pytest.raises(files.MalformedError, match=words):
            files.parse_yaml(text.encode())
    assert files.parse_yaml("a: &a [1]\nb: *a\n'1': x\nc: {a: {a: é}}\n".encode()) == {
        "a": [1],
        "b": [1],
        "1": "x",
        "c": {"a": {"a": "é"}},
    }


def test_a_folder_in_place_of_a_document_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "hashes.json").mkdir()
    with pytest.raises(files.MalformedError, match="not a regular file"):
        files.read_json(tmp_path / "hashes.json")
    assert files.find_damage(tmp_path) == "hashes.json is damaged: it is not a regular file"


@dataclass(frozen=True)
class _Inner:
    size: int = 3


@dataclass(frozen=True)
class _Document:
    name: str
    inner: _Inner = field(default_factory=_Inner)


def test_a_document_of_another_version_is_decoded_in_part() -> None:
    later = {"name": "a", "inner": {"unknown": 1}, "more": []}
    assert (
        files.decode(_Document, later, partial=True)
        == files.decode(_Document, {"name": "a"}, partial=True)
        == _Document("a")
    )
    for data, message in (
        (later, "unknown key: more"),
        ({"name": "a"}, "missing key: inner"),
        ({"name": "a", "inner": {}}, "missing key in inner: size"),
    ):
        with pytest.raises(files.MalformedError, match=message):
            files.decode(_Document, data)
    with pytest.raises(files.MalformedError, match="missing key: name"):
        files.decode(_Document, {}, partial=True)
    with pytest.raises(files.MalformedError, match=r'inner\.size must be a whole number, not "x"'):
        files.decode(_Document, {"name": "a", "inner": {"size": "x"}}, partial=True)
