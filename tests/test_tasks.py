import pickle

import pytest

from q8trt.errors import ConfigError
from q8trt.tasks.glue import TASKS, canonical, custom_task, get_task

# Written down from the GLUE paper, table 1, and the official downloads: name -> (texts, labels, main metric).
GLUE = {
    "CoLA": (1, 2, "matthews"),
    "SST-2": (1, 2, "accuracy"),
    "MRPC": (2, 2, "f1"),
    "STS-B": (2, 1, "pearson"),
    "QQP": (2, 2, "f1"),
    "MNLI": (2, 3, "accuracy"),
    "QNLI": (2, 2, "accuracy"),
    "RTE": (2, 2, "accuracy"),
    "WNLI": (2, 2, "accuracy"),
}


def test_the_table_is_glue():
    assert {name: (len(task.text_columns), task.num_labels, task.main_metric) for name, task in TASKS.items()} == GLUE
    for task in TASKS.values():
        assert task.main_metric in task.metrics
        assert len(task.hub_columns) == len(task.text_columns) == (2 if task.is_pair else 1)
        assert len(task.tsv_labels) == len(task.labels)
        assert task.is_regression is (task.name == "STS-B")
        assert set(task.files) == set(task.hub_splits)


@pytest.mark.parametrize("name", ["STS-B", "STSB", "sts_b", "stsb", " Sts b "])
def test_names_are_matched_loosely(name):
    assert get_task(name) is TASKS["STS-B"]


@pytest.mark.parametrize("name", GLUE)
def test_every_hub_config_finds_its_task(name):
    assert get_task(TASKS[name].hub_config) is TASKS[name]


def test_unknown_name_is_one_line_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        get_task("MRPD")
    assert str(caught.value) == (
        "unknown task 'MRPD' (did you mean 'MRPC'?); GLUE tasks: CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI"
    )


def test_label_orders_that_differ():
    assert get_task("RTE").labels == ("entailment", "not_entailment")
    assert get_task("WNLI").labels == ("not_entailment", "entailment")
    assert get_task("WNLI").tsv_labels == ("0", "1")
    assert get_task("MNLI").labels == ("entailment", "neutral", "contradiction")
    assert get_task("SST-2").labels[1] == "positive"


def test_splits():
    mnli, cola = get_task("MNLI"), get_task("CoLA")
    assert mnli.files["dev_mismatched"] == "dev_mismatched.tsv"
    assert mnli.hub_splits["dev_matched"] == "validation_matched"
    assert cola.files == {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
    assert cola.positional == ("source", "label", "star", "sentence")


def test_tasks_can_be_hashed_and_sent_to_workers():
    task = get_task("MNLI")
    assert pickle.loads(pickle.dumps(task)) == task
    assert hash(task) == hash(get_task("mnli"))


def test_canonical():
    assert canonical("SST-2") == canonical("sst_2") == canonical("Sst 2") == "sst2"


def test_custom_classification_and_regression():
    topics = custom_task("topics", ["sport", "news", "arts"], is_pair=False)
    assert (topics.num_labels, topics.is_pair, topics.main_metric) == (3, False, "accuracy")
    assert "f1" not in topics.metrics  # F1 of class 1 means nothing among three
    grade = custom_task("grade", [], is_pair=True)
    assert grade.is_regression
    assert grade.is_pair
    assert (grade.num_labels, grade.score_range, grade.main_metric) == (1, None, "pearson")


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("", ["a", "b"], "a custom task cannot be called ''"),
        ("mrpc", ["a", "b"], "a custom task cannot be called 'mrpc'"),
        ("x", ["a"], r"two or more different labels, or none for regression, got \['a'\]"),
        ("x", ["a", "a"], r"got \['a', 'a'\]"),
        ("x", ["a", " "], "cannot have the label ' '"),
        ("x", ["a", "b\n"], r"cannot have the label 'b\\n'"),
    ],
)
def test_custom_refuses(name, labels, message):
    with pytest.raises(ConfigError, match=message):
        custom_task(name, labels, is_pair=False)
