"""The function that makes a cross-encoder's score of its logit, as sentence-transformers notes it in a checkpoint.

sentence-transformers 4 and later write ``sentence_transformers: {activation_fn: ...}`` in config.json or ``activation_fn`` in
config_sentence_transformers.json; earlier ones write ``sbert_ce_default_activation_function``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from q8trt.errors import CheckpointError
from q8trt.files import MalformedError, read_json
from q8trt.tasks.heads import Activation, HeadKind

if TYPE_CHECKING:
    from q8trt.tasks.glue import Task

_SETTINGS = "config_sentence_transformers.json"
_KEY, _OLD_KEY, _NAME = "sentence_transformers", "sbert_ce_default_activation_function", "activation_fn"
_CLASSES = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax"}
_PATHS = {"identity": "torch.nn.modules.linear.Identity", "sigmoid": "torch.nn.modules.activation.Sigmoid"}
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
    """Return the function that makes the score of a logit: "identity" unless the checkpoint names another.

    That of a reranker is in its head.

    Raises:
        CheckpointError: it names a function that q8trt does not know, or one that changes the answers of a classification.
    """
    if task.head.kind is HeadKind.RERANKER:
        return task.head.activation
    name = _activation(config)
    known = _known(name)
    if known == "sigmoid" and task.is_multi_label:
        return "identity"  # the head says that each label has a sigmoid of its own
    if known == "identity" or (known == "softmax" and task.labels and not task.is_multi_label):
        return "identity"
    if known == "sigmoid" and task.is_regression:
        return "sigmoid"
    softmax = task.labels and not task.is_multi_label
    raise _unknown(name, task.name, where, "Identity or Softmax" if softmax else "Identity or Sigmoid")


def is_cross_encoder(config: Any) -> bool:
    """Return whether sentence-transformers wrote a configuration that `adopt_activation` read."""
    return _activation(config) is not None


def activation_of_reranker(config: Any, where: str) -> Activation:
    """Return the function that makes the score of a cross-encoder's logit: "sigmoid" unless the checkpoint names another.

    Raises:
        CheckpointError: it names a function that q8trt does not know.
    """
    name = _activation(config)
    known = "sigmoid" if name is None else _known(name)
    if known not in ("identity", "sigmoid"):
        raise _unknown(name, "a reranker", where, "Identity or Sigmoid")
    return cast(Activation, known)


def set_activation(config: Any, activation: Activation) -> None:
    """Note the activation of a reranker in `config`, so that sentence-transformers opens its folder with the same scores."""
    forget_activation(config)
    setattr(config, _KEY, {_NAME: _PATHS[activation]})


def _known(name: Any) -> str | None:
    """Return the activation of a name in a configuration, "identity" for None; None for one that q8trt does not know."""
    if name is None:
        return "identity"
    module, _, kind = str(name).rpartition(".")
    return _CLASSES.get(kind) if module in _MODULES else None


def _unknown(name: Any, task: str, where: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{where} asks for the activation {str(name)[:80]!r} ({_NAME} in its configuration); for {task} q8trt knows "
        f"torch.nn's {expected}: give another checkpoint, or change the entry if the checkpoint does not need it"
    )


def _activation(config: Any) -> Any:
    """Return the name that a configuration has; None if it has none."""
    settings = getattr(config, _KEY, None)
    if isinstance(settings, dict) and _NAME in settings:
        return settings[_NAME]
    return getattr(config, _OLD_KEY, None)
