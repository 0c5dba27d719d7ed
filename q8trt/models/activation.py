"""The function that makes a cross-encoder's score of its logit, as sentence-transformers notes it in a checkpoint.

sentence-transformers 4 and later write ``sentence_transformers: {activation_fn: ...}`` in config.json or ``activation_fn`` in
config_sentence_transformers.json; earlier ones write ``sbert_ce_default_activation_function``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from q8trt.errors import CheckpointError
from q8trt.files import MalformedError, read_json

if TYPE_CHECKING:
    from q8trt.tasks.glue import Task

Activation = Literal["identity", "sigmoid"]
_SETTINGS = "config_sentence_transformers.json"
_KEY, _OLD_KEY, _NAME = "sentence_transformers", "sbert_ce_default_activation_function", "activation_fn"
_CLASSES = {"Identity": "identity", "Sigmoid": "sigmoid"}
_MODULES = ("torch.nn.modules.activation", "torch.nn.modules.linear", "torch.nn.modules", "torch.nn")


def adopt_activation(config: Any, folder: str) -> None:
    """Note in `config` an activation that only config_sentence_transformers.json of `folder` names.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(folder) / _SETTINGS
    if _activation(config) is not None or not path.is_file():
        return
    try:
        settings = read_json(path)
    except (OSError, MalformedError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if isinstance(settings, dict) and settings.get(_NAME) is not None:
        setattr(config, _KEY, {_NAME: settings[_NAME]})


def forget_activation(config: Any) -> None:
    """Remove an activation from `config`: a head that q8trt trains answers the score itself."""
    for key in (_KEY, _OLD_KEY):
        if hasattr(config, key):
            delattr(config, key)


def activation_of(config: Any, task: Task, where: str) -> Activation:
    """Return the function that makes the score of a regression's logit: "identity" unless the checkpoint names another.

    Raises:
        CheckpointError: it names a function that q8trt does not know, or one that changes the answers of a classification.
    """
    name = _activation(config)
    if name is None:
        return "identity"
    module, _, kind = str(name).rpartition(".")
    known = _CLASSES.get(kind) if module in _MODULES else None
    if known == "identity" or (not task.is_regression and kind == "Softmax" and module in _MODULES):
        return "identity"
    if known == "sigmoid" and task.is_regression:
        return "sigmoid"
    expected = "Identity or Sigmoid" if task.is_regression else "Identity or Softmax"
    raise CheckpointError(
        f"{where} asks for the activation {str(name)[:80]!r} ({_NAME} in its configuration); for {task.name} q8trt knows "
        f"torch.nn's {expected}: give another checkpoint, or change the entry if the checkpoint does not need it"
    )


def _activation(config: Any) -> Any:
    """Return the name that a configuration has; None if it has none."""
    settings = getattr(config, _KEY, None)
    if isinstance(settings, dict) and _NAME in settings:
        return settings[_NAME]
    return getattr(config, _OLD_KEY, None)
