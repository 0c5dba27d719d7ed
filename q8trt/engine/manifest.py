"""``manifest.json``: the description of an engine folder, with the hashes of its files.

An engine folder can be copied to another machine and used without other files. The manifest has exactly the fields of `Manifest`
as keys.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from msgspec import Meta

import q8trt
from q8trt.engine.record import EngineRecord
from q8trt.engine.shapes import Shape, ShapeProfile, largest, show
from q8trt.files import MalformedError, decode
from q8trt.quantization.precision import Precision
from q8trt.tasks.heads import Activation, Head, HeadKind

MANIFEST_FORMAT = 5
MANIFEST_FILE = "manifest.json"
ONNX_FILE = "model.onnx"
PLAN_FILE = "model.plan"
#: The label of every score on the built-in sentence pairs.
SAMPLE_LABEL = "built-in sample, not GLUE"
#: The inputs of BERT-like models.
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
#: A count that decides the size of arrays. The bound keeps a damaged manifest from using gigabytes.
Count = Annotated[int, Meta(ge=1, le=2**20)]


@dataclass(frozen=True)
class TaskInfo:
    """The question that the model answers.

    Attributes:
        name: the GLUE task, or the name of another task, such as "custom".
        labels: names in the order of the logits; [] for heads whose outputs have no names.
        is_regression: whether the answer is one score, as of a regression or a reranker.
        is_pair: whether an example has two texts.
        main_metric: the metric that selects the best checkpoint.
        text_columns: the columns of the data with the texts; [] if they are not known.
        activation: "sigmoid" if a score is the sigmoid of the logit, "identity" if it is the logit.
    """

    name: str
    labels: list[str]
    is_regression: bool
    is_pair: bool
    main_metric: str
    text_columns: list[str] = field(default_factory=list)
    activation: Activation = "identity"


@dataclass(frozen=True)
class ModelInfo:
    """The encoder.

    Attributes:
        num_labels: width of the output: the number of labels or of features of an embedding, 1 for a score, 2 for the start
            and end of an answer.
        max_seq_length: the maximum length of its training rows, in tokens.
    """

    name: str
    model_type: str
    num_labels: Count
    max_position_embeddings: Count
    pad_token_id: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    max_seq_length: Count


@dataclass(frozen=True)
class BackendInfo:
    """The backend that built the plan: its `name` and `version`, and the plan's compute capabilities, such as "8.9"."""

    name: str
    version: str
    sm_targets: list[str]


@dataclass(frozen=True)
class FileInfo:
    """One file of the folder: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Meta(ge=0)]


def head_of_labels(labels: Sequence[str]) -> Head:
    """Return the head of a classifier with `labels`, or of a regression if there are none."""
    return Head(HeadKind.SEQUENCE_CLASSIFICATION if labels else HeadKind.REGRESSION, tuple(labels))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Manifest:
    """An engine folder's description; each field is a key of ``manifest.json``.

    Attributes:
        precision: the number formats of the model.
        recipe: the quantization recipe as plain data; None for a model without quantizers.
        inputs: the names of the model's inputs, in its order; each is integer (batch, sequence).
        opset: the ONNX opset of ``model.onnx``.
        stage: the stage of the run that the model comes from: "fp32", "ptq" or "int8"; "" if there is none.
        profiles: the plan's optimization profiles, shortest sequences first; [] without a plan.
        backend: the backend that built the plan; None without a plan.
        metrics: numbers under nested names, such as {"dev": {"pearson": 0.8739}}.
        report: the facts of the export and the build, as plain data; `record` reads them.
        files: the files of the folder, without the manifest and hidden files; `write_manifest` sets it.
        created: time of creation, ISO 8601, UTC.
        q8trt_version: the version of q8trt that wrote the folder.
        format: the version of the manifest's format.
        digest: SHA-256 of the manifest's other keys, see `digest_of`; `write_manifest` sets it.
        head: the head of the model, which determines the answers of an engine; default: the head of the task's labels.
    """

    task: TaskInfo
    model: ModelInfo
    precision: Precision
    recipe: dict[str, Any] | None
    inputs: Annotated[list[str], Meta(min_length=1)]
    opset: Annotated[int, Meta(ge=1, le=1000)]
    stage: Annotated[str, Meta(pattern="^(|fp32|ptq|int8)$")] = ""
    profiles: list[ShapeProfile] = field(default_factory=list)
    backend: BackendInfo | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileInfo] = field(default_factory=dict)
    created: str = field(default_factory=_now)
    q8trt_version: str = q8trt.__version__
    format: int = MANIFEST_FORMAT
    digest: str = ""
    head: Head = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.head is None:
            object.__setattr__(self, "head", head_of_labels(self.task.labels))

    @functools.cached_property
    def record(self) -> EngineRecord:
        """The facts that are known before the engine runs. A fact that is missing in `report` has its default.

        Raises:
            MalformedError: a fact in `report` has another type.
            ConfigError: a build option has a value that no build takes.
        """
        try:
            return decode(EngineRecord, self.report, partial=True)
        except MalformedError as error:
            raise MalformedError(f"report: {error}") from None

    @property
    def recipe_name(self) -> str:
        """The name of the recipe; "" for a model without quantizers."""
        return str((self.recipe or {}).get("name", ""))

    @property
    def largest_shape(self) -> Shape | None:
        """The largest batch and the longest sequence that the plan accepts; None without a plan."""
        return largest(self.profiles) if self.profiles else None


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield the contradictions in a manifest, one line each."""
    yield from _task(manifest.task, manifest.model, manifest.head)
    yield from _head(manifest.head, manifest.task, manifest.model)
    yield from _shapes(manifest)
    inputs = manifest.inputs
    if len(set(inputs)) != len(inputs) or "input_ids" not in inputs or not set(inputs) <= set(INPUTS):
        yield f"inputs must be input_ids and others of {', '.join(INPUTS)}, each once; they are {inputs}"


def _head(head: Head, task: TaskInfo, model: ModelInfo) -> Iterator[str]:
    if head.outputs != model.num_labels:
        yield f"head answers {head.outputs} numbers, but model.num_labels is {model.num_labels}"
    if list(head.labels) != task.labels:
        yield f"head.labels are {list(head.labels)}, but task.labels are {task.labels}"
    if task.is_regression is not head.kind.is_score:
        yield f"head.kind is {head.kind}, but task.is_regression is {str(task.is_regression).lower()}"
    if head.kind is HeadKind.RERANKER and (not task.is_pair or head.activation != task.activation):
        yield f"head.kind is reranker, but task.is_pair is {str(task.is_pair).lower()}, or head.activation not task.activation"
    if head.embedding and task.is_pair:
        yield "head.kind is embedding, but task.is_pair is true"


def _task(task: TaskInfo, model: ModelInfo, head: Head) -> Iterator[str]:
    if task.is_regression:
        if task.labels:
            yield f"task.is_regression is true, but task.labels has {len(task.labels)} names"
        if model.num_labels != 1:
            yield f"task.is_regression is true, but model.num_labels is {model.num_labels}"
    elif head.kind.has_labels and len(task.labels) != model.num_labels:
        yield f"task.labels has {len(task.labels)} names, but model.num_labels is {model.num_labels}"
    if len(set(task.labels)) != len(task.labels) or not all(label.strip() for label in task.labels):
        yield f"task.labels must be different names, none of them empty; they are {task.labels}"
    if task.activation != "identity" and not task.is_regression:
        yield f"task.activation is {task.activation}, but the task is a classification"
    if task.text_columns and len(task.text_columns) != 1 + task.is_pair:
        yield f"task.text_columns has {len(task.text_columns)} names, but task.is_pair is {str(task.is_pair).lower()}"


def _shapes(manifest: Manifest) -> Iterator[str]:
    model = manifest.model
    if model.max_seq_length > model.max_position_embeddings:
        yield (
            f"model.max_seq_length is {model.max_seq_length}, but model.max_position_embeddings is "
            f"{model.max_position_embeddings}"
        )
    for index, profile in enumerate(manifest.profiles):
        if profile.max[1] > model.max_position_embeddings:
            yield (
                f"profiles[{index}].max is {show(profile.max)}, but model.max_position_embeddings is "
                f"{model.max_position_embeddings}"
            )
