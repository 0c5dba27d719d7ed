"""Checkpoints that q8trt wrote are read only while they are what it wrote."""

from __future__ import annotations

from pathlib import Path

from q8trt import files
from q8trt.errors import CheckpointError
from q8trt.models.locate import is_folder


def check_whole(name: str, weights: bool = True) -> None:
    """Compare a checkpoint that q8trt wrote with the hashes that it wrote last.

    A folder without `hashes.json` is someone else's, or of an earlier version, and passes; so does a name of the hub.

    Args:
        name: the folder.
        weights: whether the weights are compared; the other files always are.

    Raises:
        CheckpointError: a file is missing, cannot be read, or is not the one that was saved; names it.
    """
    if not is_folder(name) or not files.has_seal(name):
        return
    try:
        damage = files.find_damage(name, lambda file: weights or not file.endswith(".safetensors"))
    except OSError as error:
        raise CheckpointError(f"{error.filename or name} cannot be read: {error.strerror or error}") from None
    if damage:
        raise CheckpointError(
            f"{Path(name)}/{damage}; restore the file or make the checkpoint again (if you changed it on purpose, delete "
            f"{files.SEAL_FILE})"
        )
