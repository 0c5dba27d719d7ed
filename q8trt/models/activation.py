"""The activation that turns a cross-encoder's logit into its score, as sentence-transformers stores it in a checkpoint.

sentence-transformers 4 and later write ``sentence_transformers: {activation_fn: ...}`` to config.json or ``activation_fn`` to
config_sentence_transformers.json; earlier versions write ``sbert_ce_default_activation_function`` to config.json.
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
    """Copy the activation of `folder`'s config_sentence_transformers.json to `config`, in place, if `config` has none.

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
    """Remove the activation from `config`, in place: the output of a head that q8trt trains is the score."""
    for key in (_KEY, _OLD_KEY):
        if hasattr(config, key):
            delattr(config, key)


def activation_of(config: Any, task: Task, where: str) -> Activation:
    """Return the activation that turns a logit into a score: that of a reranker's head, else the checkpoint's.

    The default is "identity". So are the softmax of a classification and the sigmoid of a multi-label classification, which
    the head implies.

    Raises:
        CheckpointError: the checkpoint names an activation that q8trt does not support for this task.
    """
    if task.head.kind is HeadKind.RERANKER:
        return task.head.activation
    name = _activation(config)
    known = _known(name)
    if known == "sigmoid" and task.is_multi_label:
        return "identity"  # a multi-label head implies a sigmoid for each label
    if known == "identity" or (known == "softmax" and task.labels and not task.is_multi_label):
        return "identity"
    if known == "sigmoid" and task.is_regression:
        return "sigmoid"
    softmax = task.labels and not task.is_multi_label
    raise _unknown(name, task.name, where, "Identity or Softmax" if softmax else "Identity or Sigmoid")


def is_cross_encoder(config: Any) -> bool:
    """Return whether `config` names an activation, after `adopt_activation`: only sentence-transformers writes one."""
    return _activation(config) is not None


def activation_of_reranker(config: Any, where: str) -> Activation:
    """Return the activation that turns a cross-encoder's logit into its score; "sigmoid" if the checkpoint names none.

    Raises:
        CheckpointError: the checkpoint names an activation other than Identity and Sigmoid.
    """
    name = _activation(config)
    known = "sigmoid" if name is None else _known(name)
    if known not in ("identity", "sigmoid"):
        raise _unknown(name, "a reranker", where, "Identity or Sigmoid")
    return cast(Activation, known)


def set_activation(config: Any, activation: Activation) -> None:
    """Set a reranker's activation in `config`, in place, so that sentence-transformers computes the same scores."""
    forget_activation(config)
    setattr(config, _KEY, {_NAME: _PATHS[activation]})


def _known(name: Any) -> str | None:
    """Return the activation that `name` stands for: "identity" for None, and None for an unknown name."""
    if name is None:
        return "identity"
    module, _, kind = str(name).rpartition(".")
    return _CLASSES.get(kind) if module in _MODULES else None


def _unknown(name: Any, task: str, where: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{where} has the activation {str(name)[:80]!r} ({_NAME} in its configuration); for {task} q8trt supports "
        f"torch.nn's {expected}; give another checkpoint, or change the entry if the checkpoint does not need it"
    )


def _activation(config: Any) -> Any:
    """Return the name of the activation in `config`; None if it names none."""
    settings = getattr(config, _KEY, None)
    if isinstance(settings, dict) and _NAME in settings:
        return settings[_NAME]
    return getattr(config, _OLD_KEY, None)
