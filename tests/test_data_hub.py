"""GLUE from the hub, and the options that choose a source."""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from waiting import PATIENCE

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data import DataConfig, load_dev, load_examples, load_train
from q8trt.tasks.data.hub import read_hub
from q8trt.tasks.glue import get_task

RTE, STSB, SST2 = get_task("RTE"), get_task("STS-B"), get_task("SST-2")


def error_of(call, *arguments):
    with pytest.raises((DataError, ConfigError)) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Hub


class FakeHub(dict):
    """Columns of a split, as a `datasets.Dataset` gives them."""

    def __init__(self, columns, names=None):
        super().__init__(columns)
        self.features = {"label": types.SimpleNamespace(names=names)} if names else {}

    def __len__(self):
        return len(next(iter(self.values())))


def test_hub_is_asked_for_the_right_split():
    asked = []

    def loader(*arguments, **options):
        asked.append((arguments, options))
        return FakeHub({"premise": ["a"], "hypothesis": ["b"], "label": [2]})

    examples = read_hub(get_task("MNLI"), "dev_mismatched", loader)
    assert asked == [(("nyu-mll/glue", "mnli"), {"split": "validation_mismatched"})]
    assert (examples.first, examples.second, examples.labels.tolist()) == (["a"], ["b"], [2])
    assert examples.source == "hub nyu-mll/glue"


def test_hub_scores_and_test_splits():
    columns = {"sentence1": ["a"], "sentence2": ["b"], "label": [3.8]}
    assert read_hub(STSB, "dev", lambda *_, **__: FakeHub(columns)).labels.dtype == np.float32
    columns["label"] = [-1]
    assert read_hub(RTE, "test", lambda *_, **__: FakeHub(columns)).labels is None
    assert error_of(read_hub, RTE, "dev", lambda *_, **__: FakeHub(columns)) == (
        "nyu-mll/glue/rte validation: row 0: label -1, expected one of 0, 1"
    )


def test_hub_label_order_is_checked():
    data = FakeHub({"sentence1": ["a"], "sentence2": ["b"], "label": [0]}, names=["not_entailment", "entailment"])
    assert error_of(read_hub, RTE, "dev", lambda *_, **__: data) == (
        "nyu-mll/glue/rte validation: labels not_entailment, entailment, expected entailment, not_entailment"
    )


def test_hub_skips_qqp_s_broken_rows_with_a_count(caplog):
    data = FakeHub({"question1": ["a", "", "c"], "question2": ["b", "b", "d"], "label": [0, 1, 1]})
    assert read_hub(get_task("QQP"), "train", lambda *_, **__: data).labels.tolist() == [0, 1]
    assert [record.getMessage() for record in caplog.records] == ["nyu-mll/glue/qqp train: skipped 1 broken rows of 3"]


def test_any_failure_of_the_client_is_one_line():
    def loader(*_, **__):
        raise RuntimeError("first line\nsecond line")

    assert error_of(read_hub, RTE, "train", loader) == (
        "nyu-mll/glue/rte train cannot be loaded from the hub (RuntimeError: first line); without a network give "
        "--data_dir FOLDER with the official GLUE TSV files, or --demo for the built-in sample"
    )


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_hub_the_real_client_fails_fast(tmp_path, environment):
    code = (
        "from q8trt.tasks.data import DataConfig, load_train\n"
        "try:\n    load_train(DataConfig('RTE'))\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.stdout.startswith(
        "DataError nyu-mll/glue/rte train cannot be loaded from the hub (ConnectionError: no network, or offline mode, "
        "and no cached copy); without a network give --data_dir FOLDER"
    )
    assert "Retry" not in run.stderr


# Options


def test_max_samples_take_a_prefix():
    whole = DataConfig("STS-B", sample=True)
    config = DataConfig("STS-B", sample=True, max_train_samples=7, max_eval_samples=3)
    assert load_train(config).first == load_train(whole).first[:7]
    dev = load_dev(config)["dev"]
    assert dev.second == load_dev(whole)["dev"].second[:3]
    assert len(dev.labels) == 3
    assert dev.is_sample


OPTION_ERRORS = [
    ({"task": "STSC"}, "unknown task 'STSC' (did you mean 'STS-B'?)"),
    ({"max_seq_length": 0}, "--max_seq_length 0, expected 1 or more"),
    ({"max_train_samples": -1}, "--max_train_samples -1, expected 1 or more"),
    ({"max_eval_samples": 0}, "--max_eval_samples 0, expected 1 or more"),
    (
        {"data_dir": "a", "validation_file": "b"},
        "--data_dir and --train_file/--validation_file exclude each other: give one source of data",
    ),
    ({"data_dir": "a", "sample": True}, "--data_dir and --sample exclude each other"),
    ({"task": "MRPC", "sample": True}, "the built-in sample has sentence similarities; use --task STS-B, not MRPC"),
    ({"task": "custom"}, "--task custom needs --train_file and --validation_file"),
    ({"label_list": ("a", "b")}, "--label_list is for --task custom; the labels of STS-B are fixed"),
    ({"task": "custom", "train_file": "a", "label_list": ("a",)}, "task 'custom' needs two or more different labels"),
    ({"text_column_names": ("a", "b")}, "--text_column_names and --label_column_name need --train_file"),
    ({"train_file": "a", "text_column_names": ("a",)}, "STS-B has 2 text columns, but --text_column_names has 1"),
    ({"train_file": "a", "text_column_names": ("a", "b", "c")}, "--text_column_names takes one or two columns, got 3"),
    (
        {"train_file": "a", "text_column_names": ("a", "a")},
        "--text_column_names a a: a column appears twice",
    ),
    (
        {"train_file": "a", "text_column_names": ("a", "b"), "label_column_name": "b"},
        "--text_column_names a b and --label_column_name b: a column appears twice",
    ),
    ({"data_dir": ""}, "--data_dir is empty; give a value, or leave the option out"),
    ({"train_file": "a", "label_column_name": ""}, "--label_column_name is empty"),
]


@pytest.mark.parametrize(("options", "message"), OPTION_ERRORS)
def test_options_that_cannot_be(options, message):
    assert error_of(lambda: DataConfig(**{"task": "STS-B", **options})).startswith(message)


def test_splits_that_are_not_there():
    assert error_of(load_dev, DataConfig("STS-B", train_file="a.csv")) == (
        "--validation_file is missing; give your own data with --train_file and --validation_file"
    )
    assert error_of(load_examples, DataConfig("MNLI"), "dev") == (
        "no split 'dev'; expected one of train, dev_matched, dev_mismatched"
    )


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, q8trt.tasks.data, q8trt.tasks.metrics\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'scipy', 'sklearn', 'tensorboard', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_every_option_has_help():
    options = [field.metadata["option"] for field in DataConfig.__dataclass_fields__.values() if field.metadata]
    assert len(options) > 10
    assert all(option.help for option in options)
