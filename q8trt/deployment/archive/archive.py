"""Archives: `pack` writes an engine folder to one file, and `unpack` verifies and unpacks it.

The file is a ZIP with stored members. Names and sizes are checked before anything is read, nothing can expand, and the bytes
depend only on the folder. The hashes inside detect damage. To detect a rewritten archive, publish the SHA-256 that `pack`
returns, and pass it to `unpack`.
"""

from __future__ import annotations

import errno
import hashlib
import io
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
from q8trt.engine.manifest import MANIFEST_FILE, Manifest
from q8trt.engine.manifest_file import load_manifest, parse_manifest
from q8trt.errors import ConfigError, EngineError

SUFFIX = ".q8trt"
CARD_FILE = "MODEL_CARD.md"
#: In the format of `sha256sum`, so that `sha256sum -c SHA256SUMS` checks an unpacked folder without q8trt.
SUMS_FILE = "SHA256SUMS"
#: Members that no manifest lists -> maximum bytes.
_UNLISTED = {MANIFEST_FILE: 64 * 2**20, CARD_FILE: 4 * 2**20, SUMS_FILE: 2**20}
#: Maximum bytes of an archive's directory. An engine folder has about ten files.
_DIRECTORY_BYTES = 2**20
_END_BYTES = 22  # size of a ZIP's last record without a comment
_HEADER_BYTES = 30  # size of a member's header before its name
#: Errors of zipfile for bytes that are not a valid archive.
_DAMAGE = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError,
    OverflowError, RuntimeError,
)  # fmt: skip
_SHOWN = 80  # maximum characters of a name in an error
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows opens these as devices
_PLAIN = re.compile(r"\w(?:[\w .+-]*[\w+-])?", re.ASCII)


@dataclass(frozen=True)
class Packed:
    """A written archive: its path, size in bytes and SHA-256; `members` maps names to sizes in bytes."""

    path: Path
    bytes: int
    sha256: str
    members: Mapping[str, int]


def pack(folder: str | Path, output: str | Path | None = None, license: str | None = None) -> Packed:
    """Write an engine folder to one archive. The same folder gives the same bytes.

    A ``MODEL_CARD.md`` in the folder is packed unchanged. Without one, a card is made.

    Args:
        folder: the engine folder, whose files are all verified first.
        output: the archive, which is replaced when complete; None for a file beside the folder, with `SUFFIX`.
        license: license of the base model, for the card; None to read it from the base model's card.

    Raises:
        ConfigError: the output is a folder, is inside the engine folder, or is a file that is not an archive of `pack`; or
            `license` is set for a folder with a card.
        EngineError: the folder is damaged, its card is a link to another folder, or a file has a name that cannot be packed.
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
    texts = {MANIFEST_FILE: (folder / MANIFEST_FILE).read_bytes(), CARD_FILE: _card(folder, manifest, license)}
    sums = {name: info.sha256 for name, info in manifest.files.items()}
    sums |= {name: hashlib.sha256(data).hexdigest() for name, data in texts.items()}
    texts[SUMS_FILE] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    with files.atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, data in texts.items():
            archive.writestr(_member(name, len(data)), data)
        for name in sorted(set(manifest.files) - set(texts)):
            member = _member(name, manifest.files[name].bytes)
            with (folder / name).open("rb") as source, archive.open(member, "w") as target:
                if _copy(source, target) != sums[name]:
                    raise EngineError(f"{folder / name} changed while it was packed; pack the folder again")
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    return Packed(path, path.stat().st_size, files.sha256(path), sizes)


def unpack(
    path: str | Path, output_dir: str | Path | None = None, sha256: str | None = None, overwrite: bool = False
) -> Path:
    """Verify an archive, unpack it completely or not at all, and return the engine folder.

    Args:
        path: the archive.
        output_dir: the engine folder; None for a folder beside the archive, with its name without `SUFFIX`.
        sha256: the published SHA-256 of the archive; None to verify only the hashes inside.
        overwrite: whether an engine in the folder may be replaced.

    Raises:
        ConfigError: the folder may not be replaced.
        BusyError: another process writes to the folder.
        EngineError: the file is not an archive of `pack`, is damaged or changed, or has a member that an engine does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path} does not exist; expected an archive that `q8trt pack` made")
    folder = Path(output_dir) if output_dir else path.with_suffix("")
    target = files.replaceable_folder(folder, ENGINE_FOLDER, overwrite=overwrite)
    if sha256 is not None and (actual := files.sha256(path)) != sha256.strip().casefold():
        raise EngineError(f"{path} has SHA-256 {actual}, expected {sha256}: it is not the archive that was published")
    try:
        with _LimitedFile(path) as file, zipfile.ZipFile(file) as archive:
            file.limit = None  # zipfile has read the directory
            _unpack(path, archive, target, overwrite)
    except _DAMAGE as error:
        raise EngineError(f"{path} is not an archive of `q8trt pack`, or is damaged: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise EngineError(f"{path} is damaged: a position in it is outside the file") from error
    return folder


class _LimitedFile(io.FileIO):
    """A file that ends like an archive of `pack`. A read of more than `limit` bytes raises EngineError.

    The limit applies to the directory, which zipfile reads at once, making an object for each entry.
    """

    limit: int | None = _DIRECTORY_BYTES

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.seek(max(0, path.stat().st_size - _END_BYTES))
        if not self.read(_END_BYTES).startswith(b"PK\x05\x06"):
            raise zipfile.BadZipFile("it does not end like a ZIP")

    def read(self, size: int | None = -1, /) -> bytes:
        if self.limit is not None and size is not None and size > self.limit:
            raise EngineError(
                f"{self.name} is refused: its directory has {size:,} bytes, expected at most {self.limit:,}; nothing was "
                "unpacked"
            )
        return super().read(size)


def _check_output(path: Path, folder: Path) -> None:
    """Raise ConfigError if `path` is inside the engine folder, or exists and is not an archive of `pack`."""
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; give the name of a file, such as {path / ('engine' + SUFFIX)}")
    if os.path.lexists(path) and not _is_archive(path):
        raise ConfigError(
            f"--output {path} exists and is not an archive of `q8trt pack`; choose another name, or remove it"
        )
    if folder.resolve() in path.resolve().parents:
        raise ConfigError(f"--output {path} is inside the engine folder {folder}; give a path outside it")


def _is_archive(path: Path) -> bool:
    """Return whether the file begins like an archive of `pack`, whose first member is the manifest."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        header, name = file.read(_HEADER_BYTES), file.read(len(MANIFEST_FILE))
    return header.startswith(b"PK\x03\x04") and name == MANIFEST_FILE.encode()


def _card(folder: Path, manifest: Manifest, license: str | None) -> bytes:
    card = folder / CARD_FILE
    if not os.path.lexists(card):
        return make_card(folder, manifest, license).encode()
    if license is not None:
        raise ConfigError(f"--license is for a new card, but {card} exists; edit it, or remove it")
    if card.resolve().parent != folder.resolve():
        raise EngineError(f"{card} is a link to another folder; replace it with a copy of the card, or remove it")
    try:
        return files.read_limited(card, files.Limits(size=_UNLISTED[CARD_FILE]))
    except files.MalformedError as error:
        raise EngineError(f"{card} cannot be packed: {error}") from None


def _member(name: str, size: int) -> zipfile.ZipInfo:
    """Return a member whose entry depends on neither machine nor time."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr, info.file_size = 3, (stat.S_IFREG | 0o644) << 16, size  # 3: Unix
    return info


def _refusal(name: str) -> str | None:
    """Return the reason why a file may not have this name; None if it may."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        return "leaves the folder"
    if "/" in name or "\\" in name:
        return "is in a subfolder, and an engine folder has none"
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
        files.replaceable_folder(folder, ENGINE_FOLDER, overwrite=overwrite)  # again, now under the lock
        for name, member in members.items():
            with archive.open(member) as source, (temporary / name).open("xb") as target:
                digest = _copy(source, target)
            if name != SUMS_FILE and digest != sums[name]:
                raise EngineError(
                    f"{path}: {name} has SHA-256 {digest[:12]}…, expected {sums[name][:12]}…: it is damaged or was changed; "
                    "get the archive again"
                )


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name after a check of their entries in the directory. No member is read."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.orig_filename
        if reason := _refusal(name) or _entry_refusal(info, {each.casefold() for each in members}):
            raise EngineError(f"{path} is refused: its member {name[:_SHOWN]!r} {reason}; nothing was unpacked")
        members[name] = info
    if missing := [name for name in _UNLISTED if name not in members]:
        raise EngineError(f"{path} has no {missing[0]}, so it is not an archive of `q8trt pack`, or is incomplete")
    return members


def _entry_refusal(info: zipfile.ZipInfo, others: set[str]) -> str | None:
    """Return the reason why a member's entry is refused, or None. `others` are the earlier names in lower case."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or a device, not a file"
    if info.orig_filename.casefold() in others:
        return "appears twice"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed, and `q8trt pack` does not compress"
    if info.file_size > (allowed := _UNLISTED.get(info.orig_filename, info.file_size)):
        return f"has {info.file_size:,} bytes, expected at most {allowed:,}"
    return None


def _sums(path: Path, data: bytes) -> dict[str, str]:
    """Return file name -> SHA-256 from the contents of a file in the format of `sha256sum`."""
    lines = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in data.decode("utf-8").splitlines()]
    if not all(lines):
        raise EngineError(f"{path}: {SUMS_FILE} is damaged; expected lines of a SHA-256 and a name; get it again")
    return {match[2]: match[1] for match in lines if match}


def _compare_with_manifest(path: Path, members: Mapping[str, zipfile.ZipInfo], manifest: Manifest) -> None:
    if unknown := sorted(set(members) - set(_UNLISTED) - set(manifest.files)):
        raise EngineError(
            f"{path} is refused: its member {unknown[0][:_SHOWN]!r} is not in its manifest; nothing was unpacked"
        )
    for name, info in manifest.files.items():
        if name not in members:
            raise EngineError(f"{path} has no {name}, which its manifest lists: it is incomplete; get it again")
        if members[name].file_size != info.bytes:
            raise EngineError(
                f"{path} is refused: its member {name!r} has {members[name].file_size:,} bytes, the manifest says "
                f"{info.bytes:,}; nothing was unpacked"
            )


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy `source` to its end, and return the SHA-256 of the copied bytes."""
    digest = hashlib.sha256()
    while block := source.read(2**20):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()
