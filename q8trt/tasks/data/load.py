"""The options of the data, and the source that each split is read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from q8trt.console.options import at_least, check_options, option
from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data import tfrecord
from q8trt.tasks.data.examples import Examples, Features
from q8trt.tasks.data.hub import read_hub
from q8trt.tasks.data.opening import open_data, path_name
from q8trt.tasks.data.questions import read_questions
from q8trt.tasks.data.record import DataRecord, SplitRecord
from q8trt.tasks.data.sample import sample_examples
from q8trt.tasks.data.sentences import read_sentences
from q8trt.tasks.data.tabular import read_table
from q8trt.tasks.data.texts import read_texts, sample_texts
from q8trt.tasks.data.tsv import check_folder, find_file, read_folder
from q8trt.tasks.data.windows import WindowSizes
from q8trt.tasks.glue import TASKS, Task, canonical, custom_task, get_task, task_of_head
from q8trt.tasks.heads import Head, HeadKind

#: Default maximum number of tokens of an example; that of windows of questions is in `WindowSizes`.
DEFAULT_LENGTH = 128
#: Tasks that have the name of their head.
_NAMED = {canonical(kind): kind for kind in HeadKind if kind.per_token}


@dataclass(frozen=True)
class DataConfig:
    """The rows to read. Without `data_dir`, files and `sample`, GLUE is read from the hub.

    Raises:
        ConfigError: the task is unknown, options contradict each other, or a number is not positive.
    """

    task: str = option(
        help="GLUE task, such as STS-B or MRPC; or custom, token-classification or question-answering for your own files",
        metavar="TASK",
        missing=f"give one of {', '.join(TASKS)}; or custom, token-classification or question-answering with your own files",
    )
    data_dir: str | None = option(
        None, "folder of the task's official TSV or TFRecord files, or the GLUE folder", metavar="DIR"
    )
    train_file: str | None = option(
        None, "your training data: .csv, .tsv, .jsonl, .parquet or .tfrecord", metavar="FILE"
    )
    validation_file: str | None = option(
        None, "your development data: .csv, .tsv, .jsonl, .parquet or .tfrecord", metavar="FILE"
    )
    sample: bool = option(False, "use the built-in sentence pairs (not GLUE) in place of STS-B")
    max_train_samples: int | None = option(
        None, "use only the first N training examples", unset="all", values=at_least(1)
    )
    max_eval_samples: int | None = option(
        None, "use only the first N development examples", unset="all", values=at_least(1)
    )
    max_seq_length: int = option(
        None, "tokens per example, special tokens included", values=at_least(1), unset="128 (question answering 384)"
    )
    label_list: tuple[str, ...] | None = option(
        None,
        "labels of a custom task, or tags, in the order of their ids",
        metavar="LABEL",
        unset="none, a regression",
    )
    text_column_names: tuple[str, ...] | None = option(
        None,
        "the one or two text columns of your files",
        metavar="COLUMN",
        unset="the task's; sentence1 and sentence2 for a custom task",
    )
    label_column_name: str | None = option(None, "the label column of your files", metavar="COLUMN")
    #: The head of the model, if `q8trt.models.read_head` read it; it determines labels and metrics.
    head: Head | None = None
    #: A file of texts without labels, for a model with `head`; None for the built-in sentences.
    texts: str | None = None
    multi_label: bool = option(
        False,
        "allow any number of labels in a row of a custom task: a list, or text with commas between labels",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.head is None and (kind := _NAMED.get(canonical(self.task))):
            if kind.has_labels and not self.label_list:
                raise ConfigError(
                    f"--task {self.task} needs --label_list, the tags in the order of their ids, such as O B-PER I-PER"
                )
            object.__setattr__(self, "head", Head(kind, self.label_list or () if kind.has_labels else ()))
        for name in ("data_dir", "train_file", "validation_file", "label_column_name"):
            if getattr(self, name) == "":
                raise ConfigError(f"--{name} is empty; give a value, or leave the option out")
        sources = {
            "--data_dir": self.data_dir,
            "--train_file/--validation_file": self.has_files,
            "--sample": self.sample,
        }
        several = [name for name, value in sources.items() if value]
        if len(several) > 1:
            raise ConfigError(f"{' and '.join(several)} exclude each other: give one source of data")
        task = self.resolved_task  # resolved here so that a wrong name fails early
        if self.max_seq_length is None:
            is_question = task.head.kind is HeadKind.QUESTION_ANSWERING
            object.__setattr__(self, "max_seq_length", WindowSizes().max_length if is_question else DEFAULT_LENGTH)
        self._check_custom()
        if self.sample and task.name != "STS-B":
            raise ConfigError(f"the built-in sample has sentence similarities; use --task STS-B, not {self.task}")

    def _check_custom(self) -> None:
        columns = self.text_column_names
        if columns is not None and len(columns) not in (1, 2):
            raise ConfigError(f"--text_column_names takes one or two columns, got {len(columns)}")
        if columns is not None and len({*columns, self.label_column_name}) != len(columns) + 1:
            label = f" and --label_column_name {self.label_column_name}" if self.label_column_name else ""
            raise ConfigError(
                f"--text_column_names {' '.join(columns)}{label}: a column appears twice; give different ones"
            )
        if self.is_custom and not self.has_files and (self.head is None or canonical(self.task) in _NAMED):
            raise ConfigError(f"--task {self.task} needs --train_file and --validation_file")
        if self.multi_label and (not self.is_custom or self.head is not None):
            raise ConfigError("--multi_label is for --task custom with --label_list")
        if self.label_list is not None and not (canonical(self.task) == "custom" or (self.head and self.head.labels)):
            raise ConfigError(f"--label_list is for --task custom; the labels of {self.task} are fixed")
        if (
            not self.has_files
            and self.texts is None
            and self.head is None
            and (columns is not None or self.label_column_name is not None)
        ):
            raise ConfigError("--text_column_names and --label_column_name need --train_file or --validation_file")
        if columns is not None and len(columns) != len(self.resolved_task.text_columns):
            name, expected = (
                self.head.kind if self.head and self.is_custom else self.task,
                self.resolved_task.text_columns,
            )
            raise ConfigError(f"{name} has {len(expected)} text columns, but --text_column_names has {len(columns)}")

    def check_places(self) -> None:
        """Check that the folder or the files of the rows exist, without reading them. Raises DataError."""
        if self.data_dir is not None:
            check_folder(Path(self.data_dir), self.resolved_task)
        for file in filter(None, (self.train_file, self.validation_file)):
            open_data(Path(file)).close()

    @property
    def has_files(self) -> bool:
        """True if the data are the user's own files."""
        return self.train_file is not None or self.validation_file is not None

    @property
    def is_custom(self) -> bool:
        """True if the task is outside GLUE."""
        return canonical(self.task) in ("custom", *_NAMED)

    @cached_property
    def resolved_task(self) -> Task:
        """The task: a GLUE task, a custom one, or that of the head."""
        if self.head:
            glue = None if self.is_custom else get_task(self.task)
            has_labels = self.has_files or self.data_dir is not None or glue is not None
            # Rows with a similarity, a question or a query are pairs; others are single texts, unless there are two columns.
            pairs = self.head.kind in (HeadKind.RERANKER, HeadKind.QUESTION_ANSWERING)
            count = len(self.text_column_names or (1,) * (2 if has_labels and self.head.embedding else 1))
            return task_of_head(self.head, pairs or count == 2, has_labels, glue)
        if not self.is_custom:
            return get_task(self.task)
        is_pair = len(self.text_column_names or (1, 2)) == 2
        return custom_task("custom", self.label_list or (), is_pair, self.multi_label)

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """The development splits; MNLI has two, except in the user's own files and for a model with `head`."""
        return ("dev",) if self.has_files or self.head else tuple(self.resolved_task.dev_splits)

    @property
    def columns(self) -> Sequence[str]:
        """The text columns that are known without reading the data; () if none are."""
        return self.text_column_names or ()

    def limited(self, count: int) -> DataConfig:
        """Return a configuration that uses only the first `count` development examples."""
        return replace(self, max_eval_samples=count)

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `DataConfig` by name."""
        return {each.name: getattr(self, each.name) for each in fields(DataConfig)}

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON data."""
        return {**self.options, "head": self.head and asdict(self.head)}

    def load(self, split: str) -> Examples | Features:
        """Return a split, see `load_examples`."""
        task = self.resolved_task
        examples: Examples | Features
        if self.is_unlabeled(split):
            examples = self._load_texts(split)
        elif self.sample:
            examples = sample_examples(split)
        elif self.has_files:
            examples = _read_file(self, split)
        elif self.data_dir is not None:
            examples = _read_folder(Path(self.data_dir), task, split)
        else:
            examples = read_hub(task, split)
        return examples.take(self.max_train_samples if split == "train" else self.max_eval_samples)

    def is_unlabeled(self, split: str) -> bool:
        """Return whether a split has texts without labels: a model with `head` has no labeled file for it."""
        labeled = self.train_file is not None if split == "train" else self.has_files
        return self.head is not None and not labeled and self.data_dir is None and self.is_custom

    def _load_texts(self, split: str) -> Examples:
        task = self.resolved_task
        if self.texts is None:
            return sample_texts(task, split)
        return read_texts(
            self.texts, task, split, self.text_column_names, self.max_train_samples, self.max_eval_samples
        )


@dataclass(frozen=True)
class RunData(DataConfig):
    """The rows of an earlier run; a split that has changed since raises an error.

    Attributes:
        record: the rows that the run read; None for a run of an earlier q8trt, whose rows are not compared.
        remedy: the remedy in errors about missing or changed rows, or "".
        count: use only the first `count` of the run's development rows; None for all.
    """

    record: DataRecord | None = None
    remedy: str = ""
    count: int | None = None

    def limited(self, count: int) -> RunData:
        """Return a configuration that compares all rows with the run's, and uses the first `count` development rows."""
        return replace(self, count=count)

    @property
    def columns(self) -> Sequence[str]:
        """The text columns that the run read; () if none are known."""
        return self.record.text_columns if self.record and self.record.text_columns else super().columns

    def load(self, split: str) -> Examples | Features:
        """Return a split. Raises DataError if it is missing or malformed, or its rows have changed since the run."""
        try:
            examples = super().load(split)
        except DataError as error:
            raise self._error(str(error)) from None
        expected = self.record.splits.get(split) if self.record else None
        now = SplitRecord(len(examples), examples.fingerprint)
        if expected is not None and expected != now:
            raise self._error(
                f"the {split} rows ({self._place(split, examples)}) have changed since the run: {now.rows} rows with the "
                f"fingerprint {now.fingerprint}, and run.json has {expected.rows} with {expected.fingerprint}"
            )
        return examples if split == "train" else examples.take(self.count)

    def _place(self, split: str, examples: Examples | Features) -> str:
        path = self.data_dir or (self.train_file if split == "train" else self.validation_file)
        return path_name(Path(path)) if path else examples.source

    def _error(self, message: str) -> DataError:
        return DataError(f"{message}; {self.remedy}" if self.remedy else message)


def load_examples(config: DataConfig, split: str) -> Examples | Features:
    """Return the split ``"train"`` or one of ``config.dev_splits``: texts, or token ids if the source is TFRecord.

    Raises:
        ConfigError: the source has no such split.
        DataError: the data are missing, empty or malformed, or have changed since the run of a `RunData`.
    """
    if split not in ("train", *config.dev_splits):
        raise ConfigError(f"no split {split!r}; expected one of train, {', '.join(config.dev_splits)}")
    return config.load(split)


def load_train(config: DataConfig) -> Examples | Features:
    """Return the training split. Raises the errors of `load_examples`."""
    return load_examples(config, "train")


def load_dev(config: DataConfig) -> dict[str, Examples | Features]:
    """Return every development split by name; MNLI has two. Raises the errors of `load_examples`."""
    return {split: load_examples(config, split) for split in config.dev_splits}


def _read_file(config: DataConfig, split: str) -> Examples | Features:
    flag = "train_file" if split == "train" else "validation_file"
    path = getattr(config, flag)
    if path is None:
        raise ConfigError(f"--{flag} is missing; give your own data with --train_file and --validation_file")
    if config.resolved_task.head.kind is HeadKind.QUESTION_ANSWERING:
        return read_questions(path, config.resolved_task, split, config.text_column_names, config.label_column_name)
    if Path(path).suffix.lower() in tfrecord.EXTENSIONS:
        return tfrecord.read_tfrecord(path, config.resolved_task, split)
    if config.resolved_task.head.kind is HeadKind.TOKEN_CLASSIFICATION:
        words = config.text_column_names[0] if config.text_column_names else None
        return read_sentences(path, config.resolved_task, split, words, config.label_column_name)
    return read_table(path, config.resolved_task, split, config.text_column_names, config.label_column_name)


def _read_folder(folder: Path, task: Task, split: str) -> Examples | Features:
    if find_file(folder, task, task.files[split]) is None:
        # google-research/bert names the development file eval.tf_record.
        stems = (split, "eval") if split == "dev" else (split,)
        for name in (stem + extension for stem in stems for extension in tfrecord.EXTENSIONS):
            path = find_file(folder, task, name)
            if path is not None:
                return tfrecord.read_tfrecord(path, task, split)
    return read_folder(folder, task, split)
