"""The GLUE table: files, columns, labels and metrics of each task.

Sources: Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding"
(tasks and metrics); the header lines of the official TSV files; the data card of ``nyu-mll/glue`` on the Hugging Face
hub (its columns, its splits and its order of label ids, which model configurations follow).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from q8trt.errors import ConfigError, nearest
from q8trt.tasks.heads import Embedding, Head, HeadKind
from q8trt.tasks.tags import has_entities

_ONE_DEV = {"dev": "dev.tsv"}
_ONE_TEST = {"test": "test.tsv"}
_ONE_HUB = {"train": "train", "dev": "validation", "test": "test"}
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")


@dataclass(frozen=True)
class Task:
    """A task with its files, labels and metrics.

    Attributes:
        name: the official spelling, e.g. ``"STS-B"``.
        text_columns: the one or two text columns of the official TSV.
        label_column: the label column of the official TSV.
        labels: the names of the label ids, in order; empty for regression. They become a model's ``id2label``.
        tsv_labels: the spellings of the labels in the official TSV, in the same order.
        metrics: the official metrics; `main_metric` selects the best checkpoint.
        hub_config: the configuration of ``nyu-mll/glue``, with its text columns `hub_columns`; empty for your own data.
        score_range: the lowest and highest label of a bounded regression task, else None.
        dev_splits: development split -> official file.
        test_splits: test split (no labels) -> official file.
        hub_splits: any of these splits, or ``"train"`` -> split on the hub.
        positional: the columns of train and development files without a header line; empty if they have one.
        has_broken_rows: the official files have a few rows that cannot be read and are skipped.
        has_labels: rows have labels; else outputs are compared with those of the FP32 model.
        model_head: the head of the model if the labels alone do not determine it, as for embeddings, rerankers, token
            classification, question answering and several labels a row. None for the head of the labels.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    tsv_labels: tuple[str, ...]
    metrics: tuple[str, ...]
    main_metric: str
    hub_config: str = ""
    hub_columns: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None
    dev_splits: Mapping[str, str] = field(default_factory=lambda: dict(_ONE_DEV), hash=False)
    test_splits: Mapping[str, str] = field(default_factory=lambda: dict(_ONE_TEST), hash=False)
    hub_splits: Mapping[str, str] = field(default_factory=lambda: dict(_ONE_HUB), hash=False)
    positional: tuple[str, ...] = ()
    has_broken_rows: bool = False
    has_labels: bool = True
    model_head: Head | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if "f1" in self.metrics and len(self.labels) != 2:
            raise ConfigError(
                f"task {self.name!r}: the metric f1 needs two labels, got {len(self.labels)}; use accuracy or matthews"
            )

    @property
    def head(self) -> Head:
        """The head of a model for the task."""
        if self.model_head:
            return self.model_head
        return Head(HeadKind.SEQUENCE_CLASSIFICATION if self.labels else HeadKind.REGRESSION, self.labels)

    @property
    def embedding(self) -> Embedding | None:
        """The steps to an embedding, for a task that embeds each text; else None."""
        return self.model_head.embedding if self.model_head else None

    @property
    def is_multi_label(self) -> bool:
        """True if a row may have any number of labels."""
        return self.head.kind is HeadKind.MULTI_LABEL_CLASSIFICATION

    @property
    def is_regression(self) -> bool:
        """True if a label is a score, not a class: a regression, or the similarity of two embedded texts."""
        return not self.labels and self.head.kind is not HeadKind.QUESTION_ANSWERING

    @property
    def per_token(self) -> bool:
        """True if the model answers each token: outputs are (tokens, outputs), with the tokens of all rows concatenated."""
        return self.head.kind.per_token

    @property
    def is_pair(self) -> bool:
        """True if an example is two texts."""
        return len(self.text_columns) == 2

    @property
    def num_labels(self) -> int:
        """The width of the model's output, see `Head.outputs`."""
        return self.head.outputs

    @property
    def key(self) -> str:
        """The `canonical` name; a folder whose name has the same key belongs to this task."""
        return canonical(self.name)

    @property
    def files(self) -> dict[str, str]:
        """Split -> official file, for all splits."""
        return {"train": "train.tsv", **self.dev_splits, **self.test_splits}


def canonical(name: str) -> str:
    """Return `name` in lower case without hyphens, underscores and spaces: ``"STS-B"`` -> ``"stsb"``."""
    return name.strip().casefold().translate(str.maketrans("", "", "-_ "))


def _pair(name: str, columns: tuple[str, str], label_column: str, **fields: object) -> Task:
    """Return a classification task of text pairs, by default with the labels entailment and not_entailment."""
    return _classification(name, columns, label_column, **{"labels": _ENTAILMENT, **fields})


def _classification(name: str, columns: tuple[str, ...], label_column: str, **fields: object) -> Task:
    """Return a classification task with defaults for the fields that most GLUE tasks share."""
    shared: dict[str, object] = {
        "tsv_labels": _BINARY,
        "metrics": ("accuracy",),
        "main_metric": "accuracy",
        "hub_config": canonical(name),
        "hub_columns": columns,
    }
    return Task(name, columns, label_column, **{**shared, **fields})  # type: ignore[arg-type]


_ALL = (
    _classification(
        "CoLA",
        ("sentence",),
        "label",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        main_metric="matthews",
        positional=("source", "label", "star", "sentence"),
    ),
    _classification("SST-2", ("sentence",), "label", labels=("negative", "positive")),
    _pair(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        labels=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        main_metric="f1",
        hub_columns=("sentence1", "sentence2"),
    ),
    Task(
        "STS-B",
        ("sentence1", "sentence2"),
        "score",
        labels=(),
        tsv_labels=(),
        metrics=("pearson", "spearman", "corr"),
        main_metric="pearson",
        hub_config="stsb",
        hub_columns=("sentence1", "sentence2"),
        score_range=(0.0, 5.0),
    ),
    _pair(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        labels=("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
        main_metric="f1",
        has_broken_rows=True,
    ),
    _pair(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        labels=("entailment", "neutral", "contradiction"),
        tsv_labels=("entailment", "neutral", "contradiction"),
        hub_columns=("premise", "hypothesis"),
        dev_splits={"dev_matched": "dev_matched.tsv", "dev_mismatched": "dev_mismatched.tsv"},
        test_splits={"test_matched": "test_matched.tsv", "test_mismatched": "test_mismatched.tsv"},
        hub_splits={
            "train": "train",
            "dev_matched": "validation_matched",
            "dev_mismatched": "validation_mismatched",
            "test_matched": "test_matched",
            "test_mismatched": "test_mismatched",
        },
    ),
    _pair("QNLI", ("question", "sentence"), "label", tsv_labels=_ENTAILMENT),
    _pair("RTE", ("sentence1", "sentence2"), "label", tsv_labels=_ENTAILMENT),
    _pair("WNLI", ("sentence1", "sentence2"), "label", labels=("not_entailment", "entailment")),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""Official name -> task, in GLUE's order."""


def get_task(name: str) -> Task:
    """Return the GLUE task of that name; case, hyphens, underscores and spaces are ignored.

    Raises:
        ConfigError: no GLUE task has that name.
    """
    for task in _ALL:
        if task.key == canonical(name):
            return task
    raise ConfigError(f"unknown task {name!r}{nearest(name, TASKS)}; GLUE tasks: {', '.join(TASKS)}")


def custom_task(name: str, labels: Sequence[str], is_pair: bool, multi_label: bool = False) -> Task:
    """Return a task outside GLUE, for data in your own files.

    Args:
        name: the name in reports; not the name of a GLUE task.
        labels: the names of the classes in the order of their ids; empty for regression.
        is_pair: a row has two texts (columns sentence1, sentence2), else one (column sentence).
        multi_label: a row may have any number of labels.

    Raises:
        ConfigError: the name is empty or a GLUE task's; there is only one label, a repeated label or one that cannot be
            printed; or a multi-label task has no labels.
    """
    if canonical(name) in {"", *(task.key for task in _ALL)}:
        raise ConfigError(f"a custom task cannot be called {name!r}; choose a name that GLUE does not use")
    if len(labels) == 1 or len(set(labels)) != len(labels):
        raise ConfigError(f"task {name!r} needs two or more different labels, or none for regression, got {[*labels]}")
    for label in labels:
        if not label.strip() or not label.isprintable():
            raise ConfigError(
                f"task {name!r} cannot have the label {label!r}: a label needs a name that can be printed"
            )
    if multi_label and not labels:
        raise ConfigError(f"task {name!r} has several labels a row, but no list of labels; give --label_list")
    metrics = ("f1_micro", "f1_macro") if multi_label else ("accuracy", "f1") if len(labels) == 2 else ("accuracy",)
    return Task(
        name,
        ("sentence1", "sentence2") if is_pair else ("sentence",),
        label_column="label" if labels else "score",
        labels=tuple(labels),
        tsv_labels=tuple(labels),
        metrics=metrics if labels else ("pearson", "spearman", "corr"),
        main_metric=metrics[0] if labels else "pearson",
        model_head=Head(HeadKind.MULTI_LABEL_CLASSIFICATION, tuple(labels)) if multi_label else None,
    )


#: Metrics of drift from the FP32 model's outputs, for rows without labels; the first one is the main metric.
_DRIFT = {
    HeadKind.SEQUENCE_CLASSIFICATION: ("agreement", "logit_mean", "logit_p99", "logit_worst"),
    HeadKind.REGRESSION: ("correlation", "logit_mean", "logit_p99", "logit_worst"),
    HeadKind.RERANKER: ("rank_spearman", "rank_kendall", "logit_mean", "logit_p99", "logit_worst"),
    HeadKind.MULTI_LABEL_CLASSIFICATION: ("label_agreement", "logit_mean", "logit_p99", "logit_worst"),
    HeadKind.EMBEDDING: ("cosine_mean", "cosine_p1", "cosine_worst", "neighbors_10"),
    HeadKind.TOKEN_CLASSIFICATION: ("agreement", "logit_mean", "logit_p99", "logit_worst"),
    HeadKind.QUESTION_ANSWERING: ("span_agreement", "span_f1", "logit_mean", "logit_p99", "logit_worst"),
}
#: Metrics of rows with labels, for heads that do not use the task's metrics; the first one is the main metric.
_LABELED = {HeadKind.EMBEDDING: ("spearman", "pearson"), HeadKind.QUESTION_ANSWERING: ("answer_f1", "exact_match")}


def _metrics_of(head: Head, task: Task) -> tuple[str, ...]:
    """Return the metrics of a head on rows with labels; if they are not those of `task`, the first is the main metric."""
    if head.kind is HeadKind.TOKEN_CLASSIFICATION:
        return ("entity_f1", "entity_precision", "entity_recall", "token_accuracy")[
            0 if has_entities(head.labels) else 3 :
        ]
    return _LABELED.get(head.kind) or task.metrics


def task_of_head(head: Head, is_pair: bool, has_labels: bool, glue: Task | None = None) -> Task:
    """Return the task of a model with `head`.

    Args:
        head: the head of the model.
        is_pair: a row has two texts, else one.
        has_labels: the development rows have labels; else answers are compared with those of the FP32 model.
        glue: the GLUE task of the rows; None for your own rows.

    Raises:
        ConfigError: an embedding is scored on classes, or on rows of one text.
    """
    task = glue or custom_task("custom", head.labels, is_pair, head.kind is HeadKind.MULTI_LABEL_CLASSIFICATION)
    if head.embedding and has_labels and (task.labels or not task.is_pair):
        raise ConfigError(
            "an embedding is scored on pairs of texts with their similarity, "
            + (
                f"and {task.name} has other rows; use --task STS-B or your own files"
                if glue
                else "and --text_column_names has one column; give two, or leave it out"
            )
        )
    if head.kind is HeadKind.QUESTION_ANSWERING:
        task = replace(task, text_columns=("question", "context"), label_column="answers")
    metrics = _metrics_of(head, task) if has_labels else _DRIFT[head.kind]
    main = task.main_metric if metrics is task.metrics else metrics[0]
    name = task.name if glue else head.kind.value
    return replace(task, name=name, metrics=metrics, main_metric=main, has_labels=has_labels, model_head=head)
