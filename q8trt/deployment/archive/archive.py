"""One engine folder as one file: `pack` writes it, `unpack` reads it back and takes nothing in it on trust.

The file is a ZIP whose members are stored, not compressed. A ZIP's directory tells all names and sizes before anything is
read, and every system can open it. Stored members make the bytes depend on the folder alone (what deflate writes differs
between zlib and its successors) and cannot swell when they are read; the price is a file about a quarter larger.

The hashes tell damage, and a file that someone exchanged. Who can write the whole archive can write its hashes too: against
that, publish the archive's own SHA-256, which `pack` returns and `unpack` takes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from q8trt import files
from q8trt.deployment.archive.card import make_card
from q8trt.engine.folder import ENGINE_FOLDER
from q8trt.engine.manifest import MANIFEST_FILE, Manifest, load_manifest, parse_manifest
from q8trt.errors import ConfigError, EngineError

SUFFIX = ".q8trt"
CARD_FILE = "MODEL_CARD.md"
#: In the format of `sha256sum`, so that `sha256sum -c SHA256SUMS` checks an unpacked folder without q8trt.
SUMS_FILE = "SHA256SUMS"
#: Members whose size no manifest tells, and the most that they may have, bytes.
_OWN_MEMBERS = {MANIFEST_FILE: 64 * 2**20, CARD_FILE: 4 * 2**20, SUMS_FILE: 2**20}
#: The most bytes that the directory of an archive may have: an engine folder has about ten files.
_DIRECTORY_BYTES = 2**20
#: Records at the end of a ZIP: the plain one, and those of ZIP64 before it. Format, signature, field of the directory's size.
_END = (struct.Struct("<4s4H2LH"), b"PK\x05\x06", 5)
_END64 = (struct.Struct("<4sQ2H2L4Q"), b"PK\x06\x06", 8)
_LOCATOR_BYTES = 20
_HEADER_BYTES = 30  # of a member, before its name
#: Errors of zipfile about bytes that no writer makes.
_DAMAGE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError,
    OverflowError, RuntimeError,
)  # fmt: skip
_BLOCK = 2**20
_SHOWN = 80  # characters of a name in an error
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows opens these as devices
_PLAIN = re.compile(r"\w(?:[\w .+-]*[\w+-])?", re.ASCII)


@dataclass(frozen=True)
class Packed:
    """An archive that was written: where, its size in bytes, its SHA-256, and its members' sizes by name."""

    path: Path
    bytes: int
    sha256: str
    members: Mapping[str, int]


def pack(folder: str | Path, output: str | Path | None = None, licence: str | None = None) -> Packed:
    """Write an engine folder as one archive; the same folder gives the same bytes.

    A ``MODEL_CARD.md`` in the folder goes in as it is; without one, a card is made.

    Args:
        folder: what `build_engine.py` wrote; every file is verified first.
        output: the archive, replaced when complete; by default beside the folder, with `SUFFIX`.
        licence: of the base model, for the card; None for what can be found out.

    Raises:
        ConfigError: the output is a folder or a file that is no archive of `pack`, or a licence is given for a folder that
            has its own card.
        EngineError: the folder is damaged, its card is a link that leaves it, or a file has a name that cannot be packed.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    named = folder if folder.name not in ("", "..") else folder.resolve()
    path = Path(output) if output else named.with_name(named.name + SUFFIX)
    _check_output(path, folder)
    for name in manifest.files:
        if reason := _refusal(name):
            raise EngineError(f"{folder / name} cannot be packed: its name {reason}")
    if SUMS_FILE in manifest.files:
        raise EngineError(f"{folder / MANIFEST_FILE} lists {SUMS_FILE}, a name that packing needs; rebuild the engine")
    own = {MANIFEST_FILE: (folder / MANIFEST_FILE).read_bytes(), CARD_FILE: _card(folder, manifest, licence)}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in own.items()}
    sums |= {name: info.sha256 for name, info in manifest.files.items()}
    own[SUMS_FILE] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    rest = sorted(set(manifest.files) - set(own))
    with files.atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, data in own.items():
            archive.writestr(_member(name, len(data)), data)
        for name in rest:
            member = _member(name, manifest.files[name].bytes)
            with (folder / name).open("rb") as source, archive.open(member, "w") as target:
                if _copy(source, target) != sums[name]:
                    raise EngineError(f"{folder / name} changed while it was packed; pack the folder again")
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    return Packed(path, path.stat().st_size, files.sha256(path), sizes)


def unpack(
    path: str | Path, output_dir: str | Path | None = None, sha256: str | None = None, overwrite: bool = False
) -> Path:
    """Verify an archive and lay its engine folder down, whole or not at all.

    Args:
        path: what `pack` wrote.
        output_dir: the folder to make; by default beside the archive, by its name without `SUFFIX`.
        sha256: what the archive itself must have, where its maker published it.
        overwrite: replace an engine that is in the folder already.

    Returns:
        the engine folder.

    Raises:
        ConfigError: the folder holds something that is not to be replaced.
        BusyError: another process writes the folder.
        EngineError: no archive of `pack`, damaged, changed, or with a member that has no business in it.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path} does not exist; expected an archive that `q8trt pack` made")
    folder = Path(output_dir) if output_dir else path.with_suffix("")
    target = files.replaceable_folder(folder, ENGINE_FOLDER, overwrite=overwrite)
    if sha256 is not None and (actual := files.sha256(path)) != sha256.strip().casefold():
        raise EngineError(f"{path} has SHA-256 {actual}, expected {sha256}: it is not the archive that was published")
    try:
        with path.open("rb") as file:
            _check_directory(path, file)
            with zipfile.ZipFile(file) as archive:
                _unpack(path, archive, target, overwrite)
    except _DAMAGE as error:
        raise EngineError(f"{path} is no archive of `q8trt pack`, or is damaged: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise EngineError(f"{path} is damaged: a position in it lies outside the file") from error
    return folder


def _check_output(path: Path, folder: Path) -> None:
    """Raise ConfigError where `path` is something that packing must not replace, or is inside the engine folder."""
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; give the name of a file, such as {path / ('engine' + SUFFIX)}")
    if os.path.lexists(path) and not _is_archive(path):
        raise ConfigError(
            f"--output {path} exists and is no archive of `q8trt pack`; choose another name, or remove it"
        )
    if folder.resolve() in path.resolve().parents:
        raise ConfigError(f"--output {path} is inside the engine folder {folder}; give a path outside it")


def _is_archive(path: Path) -> bool:
    """Return whether the file begins as `pack` begins one: with the manifest, stored."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        header, name = file.read(_HEADER_BYTES), file.read(len(MANIFEST_FILE))
    return header.startswith(b"PK\x03\x04") and name == MANIFEST_FILE.encode()


def _check_directory(path: Path, file: IO[bytes]) -> None:
    """Judge the size of the archive's directory before zipfile reads all of it into memory.

    Raises:
        EngineError: the archive does not end as `pack` ends one, or its directory is larger than that of any engine.
    """
    size = file.seek(0, os.SEEK_END)
    end = size
    for (form, signature, field), gap in ((_END, 0), (_END64, _LOCATOR_BYTES)):
        end -= form.size + gap
        file.seek(max(end, 0))
        record = form.unpack(file.read(form.size)) if end >= 0 else (b"",)
        if record[0] != signature:
            if signature == _END64[1]:
                return
            raise EngineError(f"{path} is no archive of `q8trt pack`, or is damaged: it does not end as a ZIP does")
        if record[field] > _DIRECTORY_BYTES:
            raise EngineError(
                f"{path} is refused: its directory would take {record[field]:,} bytes, of {_DIRECTORY_BYTES:,} allowed; "
                "nothing was unpacked"
            )


def _card(folder: Path, manifest: Manifest, licence: str | None) -> bytes:
    own = folder / CARD_FILE
    if not os.path.lexists(own):
        return make_card(folder, manifest, licence).encode()
    if licence is not None:
        raise ConfigError(f"--license is for a card to be made, and {own} is there; edit it, or remove it")
    if own.resolve().parent != folder.resolve():
        raise EngineError(f"{own} is a link that leaves the folder; put the card itself there, or remove the link")
    try:
        return files.read_limited(own, files.Limits(size=_OWN_MEMBERS[CARD_FILE]))
    except files.MalformedError as error:
        raise EngineError(f"{own} cannot be packed: {error}") from None


def _member(name: str, size: int) -> zipfile.ZipInfo:
    """A member without anything of the machine or the hour in it."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr, info.file_size = 3, (stat.S_IFREG | 0o644) << 16, size  # 3: Unix
    return info


def _refusal(name: str) -> str | None:
    """Why a file may not have this name; None where it may."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        return "leaves the folder"
    if "/" in name or "\\" in name:
        return "lies in a subfolder, and an engine folder has none"
    if not _PLAIN.fullmatch(name) or _DEVICE.fullmatch(name):
        return "is not a plain file name (letters, digits, and _ . + - within)"
    return None


def _unpack(path: Path, archive: zipfile.ZipFile, folder: Path, overwrite: bool) -> None:
    members = _members(path, archive)
    manifest = parse_manifest(f"{path}: {MANIFEST_FILE}", archive.read(members[MANIFEST_FILE]))
    _compare_with_manifest(path, members, manifest)
    sums = _sums(path, archive.read(members[SUMS_FILE]))
    for name in sorted({*sums, *members} - {SUMS_FILE}):
        listed = manifest.files.get(name)
        if name not in members or name not in sums or (listed and sums[name] != listed.sha256):
            raise EngineError(
                f"{path}: {SUMS_FILE} and {MANIFEST_FILE} disagree on {name[:_SHOWN]!r}; get the archive again"
            )
    with files.exclusive(folder), files.atomic_folder(folder) as temporary:
        files.replaceable_folder(folder, ENGINE_FOLDER, overwrite=overwrite)  # nothing was put there meanwhile
        for name, member in members.items():
            with archive.open(member) as source, (temporary / name).open("xb") as target:
                digest = _copy(source, target)
            if name != SUMS_FILE and digest != sums[name]:
                raise EngineError(
                    f"{path}: {name} has SHA-256 {digest[:12]}…, the archive says {sums[name][:12]}…: it is damaged or was "
                    "changed; get it again"
                )


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name, each judged by what the archive's directory says of it; nothing is read yet."""
    members: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    for info in archive.infolist():
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        reason = _refusal(name)
        if reason is None and kind not in (0, stat.S_IFREG):
            reason = "is a link or a device, not a file"
        if reason is None and name.casefold() in seen:
            reason = "is there twice"
        if reason is None and info.flag_bits & 1:
            reason = "is encrypted"
        if reason is None and (info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size):
            reason = "is compressed, and `q8trt pack` stores members as they are"
        if reason is None and info.file_size > _OWN_MEMBERS.get(name, info.file_size):
            reason = f"would take {info.file_size:,} bytes, of {_OWN_MEMBERS[name]:,} allowed"
        if reason is not None:
            raise EngineError(f"{path} is refused: its member {name[:_SHOWN]!r} {reason}; nothing was unpacked")
        seen.add(name.casefold())
        members[name] = info
    for name in _OWN_MEMBERS:
        if name not in members:
            raise EngineError(f"{path} has no {name}, so it is no archive of `q8trt pack`, or is incomplete")
    return members


def _sums(path: Path, data: bytes) -> dict[str, str]:
    """File name -> SHA-256, of a file in the format of `sha256sum`."""
    lines = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in data.decode("utf-8").splitlines()]
    if not all(lines):
        raise EngineError(f"{path}: {SUMS_FILE} is damaged; expected lines of a SHA-256 and a name; get it again")
    return {match[2]: match[1] for match in lines if match}


def _compare_with_manifest(path: Path, members: Mapping[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    if unknown := sorted(set(members) - set(_OWN_MEMBERS) - set(manifest.files)):
        raise EngineError(
            f"{path} is refused: its member {unknown[0][:_SHOWN]!r} is not in its manifest; nothing was unpacked"
        )
    for name, info in manifest.files.items():
        if name not in members:
            raise EngineError(f"{path} has no {name}, which its manifest lists: it is incomplete; get it again")
        if members[name].file_size != info.bytes:
            raise EngineError(
                f"{path} is refused: its member {name!r} would take {members[name].file_size:,} bytes, the manifest says "
                f"{info.bytes:,}; nothing was unpacked"
            )


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy to the end of `source`; returns the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()
