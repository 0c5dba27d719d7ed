"""The Trainer's checkpoints: sealed when they are written, verified whole before training goes on from one."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files

if TYPE_CHECKING:
    from torch import nn

#: A pickle of the Trainer's options, which nothing reads.
_UNREAD = "training_args.bin"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a stage goes on.

    Attributes:
        checkpoint: the newest sound one; None to start the stage from its beginning.
        rejected: for each newer checkpoint, its name and the reason why it is not taken.
    """

    checkpoint: Path | None
    rejected: tuple[tuple[str, str], ...] = ()

    def describe(self, stage: str) -> str:
        """Return one line for the terminal; "" if there was no checkpoint at all."""
        reasons = "; ".join(f"{name} is not used: {reason}" for name, reason in self.rejected)
        if self.checkpoint is not None:
            return f"stage {stage} continues from {self.checkpoint.name}" + (f" ({reasons})" if reasons else "")
        return f"stage {stage} starts from its beginning ({reasons})" if reasons else ""


def checkpoint_at(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return folder / f"checkpoint-{step}"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a stage, sound or not, the newest first."""
    numbered = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]
    return sorted(numbered, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def seal(checkpoint: Path) -> None:
    """Finish a checkpoint that all processes have written: ordinary permissions, and hashes of every file."""
    (checkpoint / _UNREAD).unlink(missing_ok=True)
    files.write_seal(checkpoint)


def load_state(checkpoint: Path) -> Any:
    """Return the `transformers.TrainerState` of a sound checkpoint."""
    import transformers

    return transformers.TrainerState.load_from_json(str(checkpoint / _STATE))


def processes_of(checkpoint: Path) -> int:
    """Return the number of processes that wrote a checkpoint: each saves the state of its random generators."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def find_resume_point(folder: Path) -> ResumePoint:
    """Return the newest checkpoint of a stage that is sound, and whose best checkpoint is sound too.

    Raises:
        OSError: a checkpoint cannot be read, so nothing is known of it.
    """
    rejected: list[tuple[str, str]] = []
    for checkpoint in checkpoints_in(folder):
        obstacle = _obstacle(checkpoint)
        if not obstacle:
            return ResumePoint(checkpoint, tuple(rejected))
        rejected.append((checkpoint.name, obstacle))
    return ResumePoint(None, tuple(rejected))


def _obstacle(checkpoint: Path) -> str:
    """Return the reason why training cannot go on from a checkpoint as if it had never stopped; "" if it can."""
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
    """Give `model` the weights that training ended with: the best checkpoint's, or the last one's without evaluation.

    Args:
        model: the model, changed in place.
        checkpoint: that of the last step; it and its best checkpoint are sound.
        state: its `load_state`.
        leave_out: prefix of weights that only training needs.
    """
    from safetensors.torch import load_file

    best = checkpoint_at(checkpoint.parent, state.best_global_step) if state.best_global_step else checkpoint
    weights = load_file(best / "model.safetensors")
    model.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith(leave_out)})
