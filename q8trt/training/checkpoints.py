"""The Trainer's checkpoints: their hashes are written with them and verified before training continues from one."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files

if TYPE_CHECKING:
    from torch import nn

#: A pickle of the Trainer's options. It is deleted, because nothing reads it.
_UNREAD = "training_args.bin"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a stage continues.

    Attributes:
        checkpoint: the newest sound checkpoint; None to start the stage from its beginning.
        rejected: the name of each newer checkpoint, and the reason why it is not used.
    """

    checkpoint: Path | None
    rejected: tuple[tuple[str, str], ...] = ()

    def describe(self, stage: str) -> str:
        """Return one line for the terminal; "" if there is no checkpoint."""
        reasons = "; ".join(f"{name} is not used: {reason}" for name, reason in self.rejected)
        if self.checkpoint is not None:
            return f"stage {stage} continues from {self.checkpoint.name}" + (f" ({reasons})" if reasons else "")
        return f"stage {stage} starts from its beginning ({reasons})" if reasons else ""


def checkpoint_at(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of step `step`."""
    return folder / f"checkpoint-{step}"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return all checkpoints of a stage, the newest first. They may be damaged."""
    numbered = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]
    return sorted(numbered, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def seal(checkpoint: Path) -> None:
    """Write the hashes of a checkpoint after all processes have written it, and set ordinary permissions."""
    (checkpoint / _UNREAD).unlink(missing_ok=True)
    files.write_seal(checkpoint)


def load_state(checkpoint: Path) -> Any:
    """Return the `transformers.TrainerState` of a sound checkpoint."""
    import transformers

    return transformers.TrainerState.load_from_json(str(checkpoint / _STATE))


def processes_of(checkpoint: Path) -> int:
    """Return the number of processes that wrote a checkpoint. Each process saves the state of its random generators."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def find_resume_point(folder: Path) -> ResumePoint:
    """Return the newest checkpoint of a stage that is sound and whose best checkpoint is sound, too.

    Raises:
        OSError: a checkpoint cannot be read.
    """
    rejected: list[tuple[str, str]] = []
    for checkpoint in checkpoints_in(folder):
        obstacle = _obstacle(checkpoint)
        if not obstacle:
            return ResumePoint(checkpoint, tuple(rejected))
        rejected.append((checkpoint.name, obstacle))
    return ResumePoint(None, tuple(rejected))


def _obstacle(checkpoint: Path) -> str:
    """Return the reason why training cannot continue from a checkpoint without a difference; "" if it can."""
    if damage := files.find_damage(checkpoint):
        return damage
    try:
        best = load_state(checkpoint).best_global_step
    except (ValueError, TypeError) as error:
        return f"{_STATE} cannot be used: {error}"
    if best is not None and best != _step(checkpoint):
        other = checkpoint_at(checkpoint.parent, best)
        if damage := files.find_damage(other):
            return f"the best checkpoint so far, {other.name}, is not sound: {damage}"
    return ""


def remove_newer(folder: Path, checkpoint: Path | None) -> None:
    """Delete the checkpoints that `find_resume_point` rejected; training writes them again."""
    for path in checkpoints_in(folder):
        if checkpoint is None or _step(path) > _step(checkpoint):
            shutil.rmtree(path)


def remove_incomplete(folder: Path) -> None:
    """Delete checkpoints that a crash, a full disk or a second Ctrl-C left half-written."""
    for path in checkpoints_in(folder):
        if not files.has_seal(path):
            shutil.rmtree(path, ignore_errors=True)


def load_final_weights(model: nn.Module, checkpoint: Path, state: Any, leave_out: str) -> None:
    """Load the final weights of a training: those of the best checkpoint, or of the last one without evaluations.

    Args:
        model: the model, changed in place.
        checkpoint: the checkpoint of the last step. It and its best checkpoint are sound.
        state: the result of `load_state` for `checkpoint`.
        leave_out: prefix of the weights that only training needs.
    """
    from safetensors.torch import load_file

    best = checkpoint_at(checkpoint.parent, state.best_global_step) if state.best_global_step else checkpoint
    weights = load_file(best / "model.safetensors")
    model.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(leave_out)})
