"""Archives that are damaged or hostile: each is refused in one line, and nothing of it is left on the disk."""

from __future__ import annotations

import json
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pack_fixtures import forge, listed, write_engine

from q8trt.cli.main import run_command
from q8trt.deployment.archive import pack, unpack
from q8trt.engine.manifest_file import load_manifest
from q8trt.errors import Q8TRTError

Refuses = Callable[[Path], str]


@pytest.fixture
def packable(tmp_path: Path) -> Path:
    return write_engine(tmp_path / "run" / "engine")


@pytest.fixture
def refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuses:
    """Unpacks an archive, which must fail with exit code 2, one line, and no file; returns the line."""

    def run(archive: Path) -> str:
        before = set(tmp_path.rglob("*"))
        assert run_command("unpack", [str(archive), "--output_dir", str(tmp_path / "a" / "b" / "out")]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("unpack: error: ")
        assert len(err.splitlines()) == 1
        left = {path for path in set(tmp_path.rglob("*")) - before if path.is_file() or path.name == "out"}
        assert not left
        return err

    return run


def test_a_forged_archive_that_is_like_a_packed_one_is_accepted(packable: Path, tmp_path: Path) -> None:
    """Else the tests below might be refused for another reason than their own."""
    assert load_manifest(unpack(forge(packable, tmp_path / "x.q8trt"), tmp_path / "out"))
    assert load_manifest(unpack(forge(packable, tmp_path / "y.q8trt", listed("vocab.txt", b"a")), tmp_path / "more"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil", "leaves the folder"),
        ("a/../../evil", "leaves the folder"),
        ("..", "leaves the folder"),
        ("/etc/evil", "leaves the folder"),
        ("..\\evil", "leaves the folder"),
        ("\\evil", "leaves the folder"),
        ("C:evil", "leaves the folder"),
        ("c:\\evil", "leaves the folder"),
        ("sub/evil", "is in a subfolder"),
        ("sub/", "is in a subfolder"),
        ("sub\\evil", "is in a subfolder"),
        (".hidden", "is not a plain file name"),
        ("NUL.plan", "is not a plain file name"),
        ("model.plan:stream", "is not a plain file name"),
        ("line\nbreak", "is not a plain file name"),
        ("model.plan ", "is not a plain file name"),
        ("", "is not a plain file name"),
    ],
)
def test_names(packable: Path, tmp_path: Path, refuses: Refuses, name: str, reason: str) -> None:
    """Refused whether or not the manifest lists them."""
    for change in (listed(name, b"evil"), lambda members: members.update({name: b"evil"})):
        line = refuses(forge(packable, tmp_path / "x.q8trt", change))
        assert f"is refused: its member {name!r} {reason}" in line
        assert "nothing was unpacked" in line


def test_a_name_with_a_nul(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    """Python cuts such a name at the NUL: what is judged must be the whole of it."""
    path = forge(packable, tmp_path / "x.q8trt", lambda members: members.update({"model.plan_evil": b"evil"}))
    path.write_bytes(path.read_bytes().replace(b"model.plan_evil", b"model.plan\0evil"))
    assert "'model.plan\\x00evil' is not a plain file name" in refuses(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["model.plan", "Model.PLAN", "MANIFEST.json"])
def test_a_name_that_is_there_twice(packable: Path, tmp_path: Path, refuses: Refuses, name: str) -> None:
    path = forge(packable, tmp_path / "x.q8trt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"second")
    assert f"its member {name!r} appears twice" in refuses(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR])
def test_a_link_or_a_device(packable: Path, tmp_path: Path, refuses: Refuses, kind: int) -> None:
    def member(info: zipfile.ZipInfo) -> None:
        if info.filename == "model.plan":
            info.external_attr = (kind | 0o777) << 16

    assert "'model.plan' is a link or a device" in refuses(forge(packable, tmp_path / "x.q8trt", member=member))


def test_a_member_that_the_manifest_does_not_list(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = forge(packable, tmp_path / "x.q8trt", lambda members: members.update({"extra.txt": b"x"}))
    assert "its member 'extra.txt' is not in its manifest" in refuses(path)


@pytest.mark.parametrize("name", ["model.plan", "manifest.json", "MODEL_CARD.md"])
def test_a_member_that_is_missing(packable: Path, tmp_path: Path, refuses: Refuses, name: str) -> None:
    assert f"has no {name}" in refuses(
        forge(packable, tmp_path / "x.q8trt", lambda members: members.pop(name) and None)
    )


def test_a_member_larger_than_the_manifest_says(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = forge(packable, tmp_path / "x.q8trt", lambda members: members.update({"model.plan": b"\0" * 10**6}))
    assert "'model.plan' has 1,000,000 bytes, the manifest says 2,048" in refuses(path)


def test_a_compressed_bomb(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = forge(packable, tmp_path / "x.q8trt", listed("model.bin", b"\0" * 10**7), compress=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    assert "is compressed, and `q8trt pack` does not compress" in refuses(path)


def test_a_stored_member_that_claims_more_than_it_has(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    """The directory's size of the unpacked member is set to 4 GB."""
    path = forge(packable, tmp_path / "x.q8trt")
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"model.plan") - 46  # the name stands 46 bytes into its entry of the directory
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 24 : entry + 28] = struct.pack("<I", 4 * 10**9)
    path.write_bytes(data)
    assert "'model.plan' is compressed" in refuses(path)


def test_a_manifest_without_end(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    change: Callable[[dict[str, bytes]], None] = lambda members: members.update({"SHA256SUMS": b" " * (2**20 + 1)})  # noqa: E731
    assert "'SHA256SUMS' has 1,048,577 bytes" in refuses(forge(packable, tmp_path / "x.q8trt", change))


def test_an_encrypted_member(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = forge(packable, tmp_path / "x.q8trt")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"model.plan") - 46 + 8] |= 1
    path.write_bytes(data)
    assert "'model.plan' is encrypted" in refuses(path)


@pytest.mark.parametrize("name", ["model.plan", "tokenizer.json", "manifest.json", "MODEL_CARD.md"])
def test_a_file_exchanged_for_one_of_the_same_size(
    packable: Path, tmp_path: Path, refuses: Refuses, name: str
) -> None:  # fmt: skip
    """The ZIP's own checksum fits: only the hashes can tell."""
    whole = zipfile.ZipFile(pack(packable).path)
    path = tmp_path / "x.q8trt"
    with zipfile.ZipFile(path, "w") as archive:
        for each in whole.namelist():
            data = whole.read(each)
            position = len(data) // 2 if each != "manifest.json" else data.index(b"2026")  # the year it was made in
            data = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :] if each == name else data
            archive.writestr(each, data)
    line = refuses(path)
    if name == "manifest.json":
        assert "manifest.json was edited or damaged: its digest does not match" in line
    else:
        assert f"{name} has SHA-256 " in line
        assert "it is damaged or was changed; get the archive again" in line


def test_hashes_that_contradict_the_manifest(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["tokenizer.json"] = b"[]"

    assert "SHA256SUMS and manifest.json disagree on 'tokenizer.json'" in refuses(
        forge(packable, tmp_path / "x.q8trt", change)
    )


@pytest.mark.parametrize("sums", [b"", b"0" * 64 + b"  other\n"])
def test_hashes_of_other_files(packable: Path, tmp_path: Path, refuses: Refuses, sums: bytes) -> None:
    path = forge(packable, tmp_path / "x.q8trt", lambda members: members.update({"SHA256SUMS": sums}))
    assert "SHA256SUMS and manifest.json disagree on" in refuses(path)


def test_hashes_that_are_none(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = forge(packable, tmp_path / "x.q8trt", lambda members: members.update({"SHA256SUMS": b"hash  model.plan\n"}))
    assert "SHA256SUMS is damaged; expected lines of a SHA-256 and a name" in refuses(path)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"{}"])
def test_a_manifest_that_cannot_be_read(packable: Path, tmp_path: Path, refuses: Refuses, text: bytes) -> None:
    path = forge(packable, tmp_path / "x.q8trt", lambda members: members.update({"manifest.json": text}))
    assert "x.q8trt: manifest.json" in refuses(path)


@pytest.mark.parametrize("offset", [2**31 - 1, 2**32 - 2])
def test_a_directory_that_lies_outside_the_file(
    packable: Path, tmp_path: Path, refuses: Refuses, offset: int
) -> None:  # fmt: skip
    path = forge(packable, tmp_path / "x.q8trt")
    data = bytearray(path.read_bytes())
    data[-6:-2] = struct.pack("<I", offset)
    path.write_bytes(data)
    assert "x.q8trt is damaged: a position in it is outside the file" in refuses(path)


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 1000])
def test_a_directory_of_very_many_members(
    packable: Path, tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """zipfile reads a directory whole, and makes an object of each entry; also in ZIP64, at a limit that this reaches."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    path = forge(
        packable, tmp_path / "x.q8trt", lambda members: members.update({"x" * 60_000 + str(n): b"" for n in range(20)})
    )
    assert re.search(
        r"is refused: its directory has 1,2\d\d,\d{3} bytes, expected at most 1,048,576; nothing", refuses(path)
    )


@pytest.mark.parametrize("size", [2**30, 2**32 - 2])
def test_a_directory_larger_than_the_file(packable: Path, tmp_path: Path, refuses: Refuses, size: int) -> None:
    path = forge(packable, tmp_path / "x.q8trt")
    data = bytearray(path.read_bytes())
    data[-10:-6] = struct.pack("<I", size)
    path.write_bytes(data)
    assert "is damaged: " in refuses(path)


def test_a_zip64_directory_larger_than_the_file(
    packable: Path, tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    data = bytearray(pack(packable, tmp_path / "x.q8trt").path.read_bytes())
    position = data.rindex(b"PK\x06\x06")
    data[position + 40 : position + 48] = struct.pack("<Q", 2**40)
    (tmp_path / "y.q8trt").write_bytes(data)
    assert "is damaged: " in refuses(tmp_path / "y.q8trt")


def test_text_behind_an_archive(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    path = pack(packable, tmp_path / "x.q8trt").path
    path.write_bytes(path.read_bytes() + b"more")
    assert "it does not end like a ZIP" in refuses(path)


def test_a_name_without_end_is_cut_in_the_message(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    name = "a" * 60_000 + "\n"
    assert len(refuses(forge(packable, tmp_path / "x.q8trt", lambda members: members.update({name: b""})))) < 1000


def test_a_newer_format(packable: Path, tmp_path: Path, refuses: Refuses) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | {"format": 99}).encode()

    assert "has format 99" in refuses(forge(packable, tmp_path / "x.q8trt", change))


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip at all" * 100])
def test_no_archive(tmp_path: Path, refuses: Refuses, data: bytes) -> None:
    path = tmp_path / "x.q8trt"
    path.write_bytes(data)
    assert "is not an archive of `q8trt pack`, or is damaged" in refuses(path)


def test_a_zip_of_something_else(tmp_path: Path, refuses: Refuses) -> None:
    with zipfile.ZipFile(tmp_path / "x.q8trt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "has no manifest.json, so it is not an archive of `q8trt pack`" in refuses(tmp_path / "x.q8trt")


def test_cut_anywhere_it_is_refused(packable: Path, tmp_path: Path) -> None:
    whole = pack(packable).path.read_bytes()
    path = tmp_path / "x.q8trt"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(Q8TRTError):
            unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_changed_anywhere_it_is_refused_or_gives_the_same_files(packable: Path, tmp_path: Path) -> None:
    """One byte in seven is flipped, one at a time: a Q8TRTError, or a byte that means nothing, such as a date."""
    whole = pack(packable).path.read_bytes()
    path, out = tmp_path / "x.q8trt", tmp_path / "out"
    refused: list[str] = []
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            unpack(path, out)
        except Q8TRTError as error:
            refused.append(str(error))
        else:
            for each in packable.iterdir():
                assert (out / each.name).read_bytes() == each.read_bytes()
            for each in out.iterdir():
                each.unlink()
            out.rmdir()
    assert len(refused) > 0.9 * len(whole) / 7
    assert not [message for message in refused if len(message.splitlines()) != 1]
