"""The head of a model: the last part, which makes answers of hidden states. Plain facts, which a checkpoint's folder gives."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

from q8trt.errors import ConfigError


class HeadKind(StrEnum):
    """The kinds of heads."""

    SEQUENCE_CLASSIFICATION = "sequence-classification"
    REGRESSION = "regression"
    EMBEDDING = "embedding"
    RERANKER = "reranker"
    MULTI_LABEL_CLASSIFICATION = "multi-label-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    QUESTION_ANSWERING = "question-answering"

    @property
    def has_labels(self) -> bool:
        """True if each output of the head has a name."""
        kinds = HeadKind.SEQUENCE_CLASSIFICATION, HeadKind.MULTI_LABEL_CLASSIFICATION, HeadKind.TOKEN_CLASSIFICATION
        return self in kinds

    @property
    def is_score(self) -> bool:
        """True if the head answers one number."""
        return self in (HeadKind.REGRESSION, HeadKind.RERANKER)

    @property
    def per_token(self) -> bool:
        """True if the output is (batch, sequence, outputs): a row of logits for each token."""
        return self in (HeadKind.TOKEN_CLASSIFICATION, HeadKind.QUESTION_ANSWERING)


#: Function that makes a score of a logit.
Activation = Literal["identity", "sigmoid"]


#: Ways to make one vector of the hidden states of a text, in the order in which several of them are concatenated
#: (sentence-transformers' `Pooling`).
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")


@dataclass(frozen=True)
class DenseLayer:
    """A linear layer behind the pooling, with the name of its activation in `torch.nn`."""

    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "Identity"


@dataclass(frozen=True)
class Embedding:
    """The steps from hidden states to the embedding of a text.

    Attributes:
        dimension: the length of the embedding.
        pooling: names of `POOLING_MODES`, whose vectors are concatenated.
        dense: linear layers behind the pooling, in order.
        normalize: whether the embedding has length 1.
        prompts: name -> the text that is put before each text.
        default_prompt_name: the prompt where none is named; None for no prompt.

    Raises:
        ConfigError: no pooling or an unknown one, layers whose widths do not fit, or a default prompt that is not there.
    """

    dimension: int
    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.pooling if mode not in POOLING_MODES]:
            raise ConfigError(f"pooling {unknown[0]!r} is unknown; q8trt has {', '.join(POOLING_MODES)}")
        if not self.pooling:
            raise ConfigError(f"an embedding needs a pooling, one of {', '.join(POOLING_MODES)}")
        for before, layer in zip(self.dense, self.dense[1:], strict=False):
            if before.out_features != layer.in_features:
                raise ConfigError(
                    f"a Dense layer takes {layer.in_features} features and follows one that gives {before.out_features}"
                )
        if self.dense and self.dense[-1].out_features != self.dimension:
            raise ConfigError(
                f"the last Dense layer gives {self.dense[-1].out_features} features, and the embedding has {self.dimension}"
            )
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ConfigError(f"the default prompt {self.default_prompt_name!r} is not among the prompts")

    def prompt(self, name: str | None) -> str:
        """Return the text of a prompt; without a name, that of the default one, "" if there is none.

        Raises:
            ConfigError: there is no prompt of that name.
        """
        chosen = self.default_prompt_name if name is None else name
        if chosen is None:
            return ""
        if chosen not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ConfigError(f"the model has no prompt {chosen!r}; it has {known}")
        return self.prompts[chosen]


@dataclass(frozen=True)
class Head:
    """The head of a model.

    Attributes:
        kind: what it answers.
        labels: names of the outputs in their order; () for kinds whose outputs have none.
        max_length: tokens of a text, at most, as the folder says; None if it does not.
        embedding: the steps to the embedding; None for other kinds.
        activation: function that makes the score of a reranker of its logit; "identity" for other kinds.

    Raises:
        ConfigError: the facts contradict each other.
    """

    kind: HeadKind
    labels: tuple[str, ...] = ()
    max_length: int | None = None
    embedding: Embedding | None = None
    activation: Activation = "identity"

    def __post_init__(self) -> None:
        if (self.embedding is not None) is not (self.kind is HeadKind.EMBEDDING):
            raise ConfigError(
                f"a head of the kind {self.kind} {'lacks its' if self.embedding is None else 'has an'} embedding"
            )
        if bool(self.labels) is not self.kind.has_labels:
            raise ConfigError(f"a head of the kind {self.kind} {'has' if self.labels else 'lacks'} labels")
        if self.activation != "identity" and self.kind is not HeadKind.RERANKER:
            raise ConfigError(f"a head of the kind {self.kind} has the activation {self.activation}, expected identity")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"a head reads {self.max_length} tokens, expected 1 or more")

    @property
    def outputs(self) -> int:
        """The width of the model's output: labels, features of an embedding, 2 for the start and the end of an answer, or 1."""
        if self.kind is HeadKind.QUESTION_ANSWERING:
            return 2
        return self.embedding.dimension if self.embedding else len(self.labels) or 1


def with_head_fields(head: Any) -> Any:
    """Return the JSON data of a head with the defaults of fields that an earlier q8trt did not have."""
    defaults = {each.name: each.default for each in fields(Head) if each.default is not MISSING}
    return {**defaults, **head} if isinstance(head, dict) else head
