"""The rule for outputs: q8trt replaces only files that it wrote.

A folder is replaced only if q8trt made it and wrote every file in it. A file is replaced only if q8trt wrote it, or with
``--overwrite``. Links count as their targets. Commands call these functions before the work that produces the output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from q8trt.errors import ConfigError
from q8trt.files.atomic import target_of
from q8trt.files.decoding import MalformedError, read_json


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that q8trt writes.

    Attributes:
        title: name with its article for errors, such as "an engine folder".
        listed: function that returns the names that q8trt wrote into a folder, or None if the folder is not of this kind.
        companions: patterns of names that q8trt adds later, such as reports and caches.
    """

    title: str
    listed: Callable[[Path], frozenset[str] | None]
    companions: tuple[str, ...] = ()

    def foreign(self, folder: Path, listed: frozenset[str]) -> list[str]:
        """Return the sorted names in `folder` that q8trt did not write. `listed` contains the names that it wrote."""
        return sorted(
            each.name for each in folder.iterdir() if not (each.is_file() and self._is_known(each.name, listed))
        )

    def _is_known(self, name: str, listed: frozenset[str]) -> bool:
        name = target_of(name) or name  # a killed writer may have left a temporary name
        return name in listed or any(fnmatchcase(name, pattern) for pattern in self.companions)


def resolved(path: str | Path, option: str) -> Path:
    """Return the absolute path with links resolved. Raises ConfigError for a loop of links or an unusable path."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{option} {str(path)!r} is not a usable path: {error}") from None


def check_folder(path: str | Path, option: str = "--output_dir") -> None:
    """Raise ConfigError if the folder `path`, which need not exist, cannot be made or written."""
    obstacle = _obstacle(resolved(path, option))
    if obstacle is not None:
        raise ConfigError(f"{option} {path} cannot be written: {obstacle}")


def _obstacle(folder: Path) -> str | None:
    """Return the reason why a folder cannot be made or written, or None."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    if os.access(nearest, os.W_OK | os.X_OK):
        return None
    is_read_only = bool(os.statvfs(nearest).f_flag & os.ST_RDONLY)
    reason = f"{nearest} is on a read-only file system" if is_read_only else f"no permission for {nearest}"
    return f"{reason}; give a path that you may write to"


def check_apart(
    path: str | Path, models: Iterable[str | Path], option: str = "--output_dir", *, holds: bool = False
) -> None:
    """Raise ConfigError if the output folder is, is inside, or contains the folder of a model. Links are resolved.

    Args:
        path: the output folder, which need not exist.
        models: paths or hub names of models; a name that is not a folder is ignored.
        option: name of the output in errors.
        holds: whether the output may contain a model's folder.
    """
    target = resolved(path, option)
    for model in models:
        if not os.path.isdir(model):  # noqa: PTH112 - False, where Path.is_dir raises for a name that no file can have
            continue
        folder = Path(model).resolve()
        if target == folder:
            relation = "is the model's own folder"
        elif folder in target.parents:
            relation = f"is inside the model {model}"
        elif target in folder.parents and not holds:
            relation = f"contains the model {model}"
        else:
            continue
        raise ConfigError(f"{option} {path} {relation}; give a folder apart from it, such as runs/NAME")


def new_folder(path: str | Path, option: str = "--output_dir") -> Path:
    """Return the resolved path of the new folder. Raises ConfigError if it is not empty or cannot be written."""
    return _room(path, option, None, overwrite=False)


def replaceable_folder(
    path: str | Path, kind: FolderKind, *, overwrite: bool, option: str = "--output_dir", hint: str = ""
) -> Path:
    """Return the resolved path of a folder that q8trt may write or replace.

    Args:
        path: the output folder, which may be missing or empty.
        kind: the kind of folder that the command writes.
        overwrite: whether an older folder of this kind may be replaced.
        option: name of the output in errors.
        hint: remedy for a folder that q8trt did not write; "" for the default one.

    Raises:
        ConfigError: the folder cannot be written, is not of this kind, contains a name that q8trt did not write, or exists
            while `overwrite` is False.
    """
    return _room(path, option, kind, overwrite, hint)


def _room(path: str | Path, option: str, kind: FolderKind | None, overwrite: bool, hint: str = "") -> Path:
    target, current = resolved(path, option), Path.cwd().resolve()
    check_folder(path, option)
    if target == current or target in current.parents:
        raise ConfigError(f"{option} {path} is the current folder or contains it; give a new folder")
    if os.path.ismount(target):
        raise ConfigError(f"{option} {path} is a mount point, which cannot be replaced; give a folder inside it")
    if Path(path).is_symlink() and not target.exists():
        raise ConfigError(
            f"{option} {path} is a link to {target}, which does not exist; make that folder, or give another"
        )
    if target.exists():
        _check_old(path, target, option, kind, overwrite, hint)
    check_folder(target.parent, option)
    return target


def _check_old(
    path: str | Path, target: Path, option: str, kind: FolderKind | None, overwrite: bool, hint: str
) -> None:
    first = min((each.name for each in target.iterdir()), default=None)
    if first is None:
        return
    listed = kind.listed(target) if kind else None
    if kind is None or listed is None:
        other_kind = f" and is not {kind.title} of q8trt" if kind else ""
        advice = hint or "give a new folder, or an empty one"
        raise ConfigError(f"{option} {path} is not replaced: it contains {first!r}{other_kind}; {advice}")
    if foreign := kind.foreign(target, listed):
        advice = hint or f"move that away, or give another {option}"
        raise ConfigError(f"{path} is not replaced: it contains {foreign[0]!r}, which q8trt did not write; {advice}")
    if not overwrite:
        raise ConfigError(
            f"{option} {path} is {kind.title} already; add --overwrite to replace it, or give another {option}"
        )


def writable_file(
    path: str | Path,
    option: str,
    *,
    overwrite: bool = False,
    written_by_us: Callable[[Path], bool] = lambda path: False,
    hint: str = "add --overwrite to replace it, or give another path",
) -> Path:
    """Return the resolved path of a file that q8trt may write or replace.

    Args:
        path: the output file.
        option: name of the output in errors.
        overwrite: whether any older file may be replaced.
        written_by_us: predicate for a file that q8trt wrote, which may always be replaced.
        hint: remedy for a file that may not be replaced.

    Raises:
        ConfigError: the path is a folder, a device or a pipe, cannot be written, or may not be replaced.
    """
    target = resolved(path, option)
    if target.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give the path of a file")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{option} {path} is not a regular file; give the path of a file")
    if obstacle := _obstacle(target.parent):
        raise ConfigError(f"{option} {path} cannot be written: {obstacle}")
    if target.exists() and not overwrite and not written_by_us(target):
        raise ConfigError(f"{option}: {path} exists already, and is not replaced; {hint}")
    return target


def json_with(*keys: str) -> Callable[[Path], bool]:
    """Return a predicate for `writable_file`, true for a JSON file whose object has these keys, such as a report of q8trt."""

    def test(path: Path) -> bool:
        try:
            data = read_json(path)
        except (OSError, MalformedError):
            return False
        return isinstance(data, dict) and set(keys) <= data.keys()

    return test


def check_report(
    data: Path, others: Sequence[Path] = (), *, keys: Sequence[str], option: str, hint: str = "give another path"
) -> None:
    """Check that a report can be written and replaces only an older report of the same kind.

    Args:
        data: the JSON file of the report.
        others: the same report in other formats, which may be replaced if q8trt wrote the JSON file.
        keys: keys of the JSON object that only this kind has.
        option: name of the output in errors.
        hint: remedy for a file that may not be replaced.

    Raises:
        ConfigError: see `writable_file`.
    """
    test = json_with(*keys)
    for path in (data, *others):
        writable_file(path, option, written_by_us=lambda _: test(data), hint=hint)
