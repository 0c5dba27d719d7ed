"""The head of a model, the last part, which turns hidden states into answers: facts that a checkpoint's folder states."""

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
        """True if the answer of the head is one number."""
        return self in (HeadKind.REGRESSION, HeadKind.RERANKER)

    @property
    def per_token(self) -> bool:
        """True if the output is (batch, sequence, outputs): a row of logits for each token."""
        return self in (HeadKind.TOKEN_CLASSIFICATION, HeadKind.QUESTION_ANSWERING)


#: Function that turns a logit into a score.
Activation = Literal["identity", "sigmoid"]


#: Ways to pool the hidden states of a text into one vector, in the order in which several modes are concatenated
#: (sentence-transformers' `Pooling`).
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")


@dataclass(frozen=True)
class DenseLayer:
    """A linear layer after the pooling, with the name of its activation in `torch.nn`."""

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
        dense: linear layers after the pooling, in order.
        normalize: scale the embedding to length 1.
        prompts: name -> the text that is prepended to each text.
        default_prompt_name: the name of the default prompt; None for no prompt.

    Raises:
        ConfigError: the pooling is missing or unknown, the widths of layers do not fit, or the default prompt does not exist.
    """

    dimension: int
    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.pooling if mode not in POOLING_MODES]:
            raise ConfigError(f"pooling {unknown[0]!r} is unknown; q8trt supports {', '.join(POOLING_MODES)}")
        if not self.pooling:
            raise ConfigError(f"an embedding needs a pooling, one of {', '.join(POOLING_MODES)}")
        for before, layer in zip(self.dense, self.dense[1:], strict=False):
            if before.out_features != layer.in_features:
                raise ConfigError(
                    f"a Dense layer has {layer.in_features} inputs and follows one with {before.out_features} outputs"
                )
        if self.dense and self.dense[-1].out_features != self.dimension:
            raise ConfigError(
                f"the last Dense layer has {self.dense[-1].out_features} outputs, and the embedding has {self.dimension} features"
            )
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ConfigError(f"the default prompt {self.default_prompt_name!r} is not among the prompts")

    def prompt(self, name: str | None) -> str:
        """Return the text of the prompt `name`; None for the default prompt, which is "" if the model has none.

        Raises:
            ConfigError: the model has no prompt of that name.
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
        kind: the kind of its answers.
        labels: the names of the outputs, in order; () for kinds whose outputs have no names.
        max_length: the maximum number of tokens of a text; None if the folder does not state it.
        embedding: the steps to the embedding; None for other kinds.
        activation: function that turns the logit of a reranker into its score; "identity" for other kinds.

    Raises:
        ConfigError: the fields contradict each other.
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
        """The width of the model's output: number of labels or of features of an embedding, 2 for question answering, else 1."""
        if self.kind is HeadKind.QUESTION_ANSWERING:
            return 2
        return self.embedding.dimension if self.embedding else len(self.labels) or 1


def with_head_fields(head: Any) -> Any:
    """Return the JSON data of a head, with defaults for fields that an earlier q8trt did not write."""
    defaults = {each.name: each.default for each in fields(Head) if each.default is not MISSING}
    return {**defaults, **head} if isinstance(head, dict) else head
