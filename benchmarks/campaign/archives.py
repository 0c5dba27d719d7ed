"""Archives that were damaged or forged, given to `q8trt unpack`."""

from __future__ import annotations

import io
import json
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign.driver import Case, Outcome, run_area, snapshot
from benchmarks.campaign.mutations import flipped, json_mutations, spliced, truncated

TESTS = Path(__file__).resolve().parents[2] / "tests"
#: Fields of a member's entry in the central directory and of the end record: name -> (offset, format of struct).
_ENTRY = {
    "version": (6, "<H"), "flags": (8, "<H"), "method": (10, "<H"), "time": (12, "<H"), "date": (14, "<H"),
    "crc": (16, "<I"), "compressed size": (20, "<I"), "size": (24, "<I"), "name length": (28, "<H"),
    "extra length": (30, "<H"), "comment length": (32, "<H"), "disk": (34, "<H"), "attributes": (38, "<I"),
    "offset": (42, "<I"),
}  # fmt: skip
_END = {
    "disk": (4, "<H"), "start disk": (6, "<H"), "entries here": (8, "<H"), "entries": (10, "<H"), "size": (12, "<I"),
    "offset": (16, "<I"), "comment length": (20, "<H"),
}  # fmt: skip
_LOCAL = {"flags": (6, "<H"), "method": (8, "<H"), "size": (22, "<I"), "name length": (26, "<H"), "extra": (28, "<H")}
_NAMES = (
    "../x", "/etc/x", "C:x", "a/b", "a\\b", "..", ".", "", " ", "con", "NUL.txt", "a" * 300, "model.onnx\x00.txt", "x\n",
    "\x1b[31mred", "日本語", "MODEL.ONNX", "manifest.json ", "SHA256SUMS", "-rf", "\u202egpj.exe", "x:y", "model.onnx/",
)  # fmt: skip
_KINDS = (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK)
#: Lines of SHA256SUMS that no `q8trt pack` writes.
_SUMS = (
    b"", b"\n", b"x", b"\xff\xfe", b"0" * 64, b"0" * 64 + b"  model.onnx\n", b"0" * 64 + b"  ../x\n", b"\x00" * 100,
    b"0" * 63 + b"  model.onnx\n", b"G" * 64 + b"  x\n", b"0" * 64 + b"  \x1b[31m\n", b"a" * 2_000_000,
)  # fmt: skip


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield some 1,200 archives."""
    sys.path.insert(0, str(TESTS))
    from pack_fixtures import write_engine

    from q8trt.deployment.archive import pack

    engine = write_engine(base / "engine")
    data = pack(engine, base / "sound.q8trt").path.read_bytes()
    for mutate, count in ((flipped, 250), (truncated, 100), (spliced, 150)):
        for number in range(count):
            yield _case(f"{mutate.__name__}: {number}", mutate(data, random), engine)
    directory = data.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", data, directory + 16)[0]
    for mutate in (flipped, spliced):
        for number in range(100):
            changed = data[:start] + mutate(data[start:], random)
            yield _case(f"directory {mutate.__name__}: {number}", changed, engine)
    for name, changed in _field_lies(data, random):
        yield _case(name, changed, engine)
    for name, changed in _forged(engine, random):
        yield _case(name, changed, None)


def _case(name: str, data: bytes, engine: Path | None) -> Case:
    return Case(
        name,
        ("unpack", "x.q8trt", "--output_dir", "engine"),
        lambda folder: (folder / "x.q8trt").write_bytes(data),
        partial(_sound, engine),
        writes=("engine",),
        seconds=10,
        mib=256,
    )


def _sound(engine: Path | None, outcome: Outcome, folder: Path) -> str:
    """Check that what is unpacked is the engine that was packed, or at least agrees with its own manifest."""
    from q8trt.engine.manifest_file import load_manifest

    unpacked = snapshot(folder / "engine")
    if engine is not None:
        return "" if unpacked.items() >= snapshot(engine).items() else "a changed engine was unpacked"
    listed = {*load_manifest(folder / "engine").files, "manifest.json", "MODEL_CARD.md", "SHA256SUMS"}
    return "" if set(unpacked) == listed else f"unpacked: {sorted(unpacked)}"


def _field_lies(data: bytes, random: Random) -> Iterator[tuple[str, bytes]]:
    """Fields of the directory, of the end record and of local headers that do not tell the truth."""
    entries = _positions(data, b"PK\x01\x02")
    for where, fields, positions in (
        ("entry", _ENTRY, entries),
        ("end", _END, _positions(data, b"PK\x05\x06")),
        ("local", _LOCAL, _positions(data, b"PK\x03\x04")),
    ):
        for field, (offset, form) in fields.items():
            top = (1 << 8 * struct.calcsize(form)) - 1
            for value in (0, 1, 0x41, top // 2, top - 1, top, random.randrange(top), random.randrange(top)):
                changed = bytearray(data)
                struct.pack_into(form, changed, random.choice(positions) + offset, value)
                yield f"{where} {field}: {value}", bytes(changed)
    for number in range(30):  # zip64: an extra field that promises sizes and offsets
        extra = struct.pack("<HH", 1, random.choice((0, 8, 16, 24, 28, 60000))) + random.randbytes(random.randrange(32))
        position = random.choice(entries)
        length = struct.unpack_from("<H", data, position + 28)[0]
        entry = bytearray(data[position : position + 46 + length])
        struct.pack_into("<II", entry, 20, *random.choices((0xFFFFFFFF, 5), k=2))
        struct.pack_into("<H", entry, 30, len(extra))
        yield f"zip64: {number}", data[:position] + bytes(entry) + extra + data[position + 46 + length :]
    for number in range(20):
        yield f"comment: {number}", data + random.randbytes(random.randrange(1, 70_000))
        yield f"before: {number}", random.randbytes(random.randrange(1, 5000)) + data


def _positions(data: bytes, magic: bytes) -> list[int]:
    return [position for position in range(len(data)) if data.startswith(magic, position)]


def _forged(engine: Path, random: Random) -> Iterator[tuple[str, bytes]]:
    """Archives whose hashes agree, and whose contents no q8trt wrote."""
    from pack_fixtures import listed

    manifest = json.loads((engine / "manifest.json").read_text())
    for name in _NAMES:
        yield f"renamed: {name!r}", _archive(engine, name=lambda old, name=name: name if old == "model.plan" else old)
        yield f"added: {name!r}", _archive(engine, listed(name, b"x"))
        yield f"unlisted: {name!r}", _archive(engine, lambda members, name=name: members.update({name: b"x"}))
    for name in (*manifest["files"], "manifest.json", "MODEL_CARD.md", "SHA256SUMS"):
        yield f"twice: {name}", _archive(engine, twice=name)
        yield f"missing: {name}", _archive(engine, lambda members, name=name: members.pop(name, None), without=name)
        yield f"empty: {name}", _archive(engine, lambda members, name=name: members.update({name: b""}))
        for kind in _KINDS:
            yield f"kind: {name} {kind:o}", _archive(engine, kinds={name: kind})
    for number in range(20):
        yield f"reordered: {number}", _archive(engine, order=random)
    for number, sums in enumerate(_SUMS):
        yield f"sums: {number}", _archive(engine, lambda members, sums=sums: members.update({"SHA256SUMS": sums}))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"method: {method}", _archive(engine, method=method)
    for name, changed in json_mutations(manifest, random, 100):
        yield f"manifest {name}", _archive(engine, lambda members, new=changed: members.update({"manifest.json": new}))


def _archive(
    engine: Path,
    change: Callable[[dict[str, bytes]], object] | None = None,
    *,
    name: Callable[[str], str] = str,
    twice: str = "",
    without: str = "",
    kinds: dict[str, int] | None = None,
    order: Random | None = None,
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    from hashlib import sha256

    members = {each.name: each.read_bytes() for each in sorted(engine.iterdir())} | {"MODEL_CARD.md": b"# card\n"}
    if change:
        change(members)
    sums = "".join(f"{sha256(data).hexdigest()}  {each}\n" for each, data in members.items())
    members.setdefault("SHA256SUMS", sums.encode("utf-8", "replace"))
    members.pop(without, None)
    names = [*members, *([twice] if twice else [])]
    if order:
        order.shuffle(names)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for each in names:
            info = zipfile.ZipInfo("x")
            info.filename = name(each)  # past the constructor, which cuts at NUL
            info.external_attr, info.compress_type = ((kinds or {}).get(each, stat.S_IFREG) | 0o644) << 16, method
            archive.writestr(info, members[each])
    return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("archives", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
