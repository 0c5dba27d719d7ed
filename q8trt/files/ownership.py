"""The rule for outputs: q8trt replaces only files that it wrote.

A folder is replaced only if q8trt made it and wrote every file in it. A file is replaced only if q8trt wrote it, or with
``--overwrite``. Links count as their targets. All functions here run before the work that makes the output.
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
        listed: returns the names that q8trt wrote into a folder; None if the folder is not of this kind.
        companions: patterns of names that q8trt adds later, such as reports and caches.
    """

    title: str
    listed: Callable[[Path], frozenset[str] | None]
    companions: tuple[str, ...] = ()

    def foreign(self, folder: Path, listed: frozenset[str]) -> list[str]:
        """Return the names in `folder` that q8trt did not write; `listed` has the names that it wrote."""
        return sorted(
            each.name for each in folder.iterdir() if not (each.is_file() and self._is_known(each.name, listed))
        )

    def _is_known(self, name: str, listed: frozenset[str]) -> bool:
        name = target_of(name) or name  # a killed writer left a temporary one
        return name in listed or any(fnmatchcase(name, pattern) for pattern in self.companions)


def resolved(path: str | Path, option: str) -> Path:
    """Return the absolute path behind links. Raises ConfigError for a loop of links or an empty path."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{option} {str(path)!r} is not a usable path: {error}") from None


def check_folder(path: str | Path, option: str = "--output_dir") -> None:
    """Raise ConfigError if `path` cannot be written as a folder. It need not exist yet."""
    obstacle = _obstacle(resolved(path, option))
    if obstacle is not None:
        raise ConfigError(f"{option} {path} cannot be written: {obstacle}")


def _obstacle(folder: Path) -> str | None:
    """Return the reason why a folder cannot be made or written; None if it can."""
    nearest = next(each for each in (folder, *folder.parents) if each.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"no permission for {nearest}"


def check_apart(
    path: str | Path, models: Iterable[str | Path], option: str = "--output_dir", *, holds: bool = False
) -> None:
    """Raise ConfigError if the folder `path` is the folder of a model that is read, or is inside it, links resolved.

    Args:
        path: the output. It need not exist yet.
        models: the models; those that are not folders are ignored.
        option: names the output in errors.
        holds: whether the output may hold a model's folder.
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
            relation = f"holds the model {model}"
        else:
            continue
        raise ConfigError(f"{option} {path} {relation}; give a folder apart from it, such as runs/NAME")


def new_folder(path: str | Path, option: str = "--output_dir") -> Path:
    """Return the path at which the new folder `path` is written. Raises ConfigError unless it is missing or empty."""
    return _room(path, option, None, overwrite=False)


def replaceable_folder(
    path: str | Path, kind: FolderKind, *, overwrite: bool, option: str = "--output_dir", hint: str = ""
) -> Path:
    """Return the path at which the folder `path` is written: itself, or the target of the link `path`.

    Args:
        path, kind: the output, which may be missing or empty, and the kind of folder that the command writes.
        overwrite: whether an older folder of this kind may be replaced.
        option: names the output in errors.
        hint: replaces the advice of an error about a name that q8trt did not write.

    Raises:
        ConfigError: the folder cannot be written, is not of this kind, holds a name that q8trt did not write, or exists
            without `overwrite`.
    """
    return _room(path, option, kind, overwrite, hint)


def _room(path: str | Path, option: str, kind: FolderKind | None, overwrite: bool, hint: str = "") -> Path:
    target, current = resolved(path, option), Path.cwd().resolve()
    check_folder(path, option)
    if target == current or target in current.parents:
        raise ConfigError(f"{option} {path} is the current folder or holds it; give a new folder")
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
        raise ConfigError(f"{option} {path} is not replaced: it holds {first!r}{other_kind}; {advice}")
    if foreign := kind.foreign(target, listed):
        advice = hint or f"move that away, or give another {option}"
        raise ConfigError(f"{path} is not replaced: it holds {foreign[0]!r}, which q8trt did not write; {advice}")
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
    """Return the path at which the file `path` is written: itself, or the target of the link `path`.

    Args:
        path, option: the output, and its name in errors.
        overwrite: whether any older file may be replaced.
        written_by_us: returns whether q8trt wrote an older file, which may then always be replaced.
        hint: remedy for a file that may not be replaced.

    Raises:
        ConfigError: it is a folder, a device or a pipe, cannot be written, or may not be replaced.
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
    """Return a test for `writable_file`: whether a file is a JSON object with these keys, as a report of q8trt is."""

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
    """Check that a report can be written: its JSON file and the `others` beside it replace only a report of this kind.

    Args:
        data, others: the JSON file, and the same report in other formats; these are q8trt's where the JSON file is.
        keys: keys of the JSON that only this kind has.
        option, hint: the output's name in errors, and the remedy for a file that stays.

    Raises:
        ConfigError: see `writable_file`.
    """
    test = json_with(*keys)
    for path in (data, *others):
        writable_file(path, option, written_by_us=lambda _: test(data), hint=hint)
