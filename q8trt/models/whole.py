"""Checks that the files of a checkpoint are complete and unchanged since q8trt saved them."""

from __future__ import annotations

from pathlib import Path

from q8trt import files
from q8trt.errors import CheckpointError
from q8trt.models.locate import is_folder

INDEX_FILE = "model.safetensors.index.json"


def check_whole(name: str, weights: bool = True) -> None:
    """Compare the files of a checkpoint that q8trt wrote with its `hashes.json`.

    A hub name passes, and so does a folder without `hashes.json`, which comes from elsewhere or from an earlier version.
    The safetensors files are compared only if `weights` is true.

    Raises:
        CheckpointError: a file is missing, cannot be read, or has changed; the message names it.
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


def check_shards(name: str) -> None:
    """Check that the index of a checkpoint with several weight files names only files of its folder.

    Raises:
        CheckpointError: the index is damaged, or names a file elsewhere.
    """
    path = Path(name) / INDEX_FILE
    if not is_folder(name) or not path.exists():
        return
    try:
        data = files.read_json(path)
    except (OSError, files.MalformedError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; copy the checkpoint again") from None
    shards = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{path} is damaged: expected 'weight_map', an object of file names")
    if outside := [shard for shard in shards.values() if Path(shard).name != shard]:
        raise CheckpointError(f"{path} names {outside[0][:80]!r}, which is outside the folder; copy the files there")
