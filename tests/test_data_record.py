"""A run's rows are found again, compared with what the run read, and described."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_data import write_sts_b

from q8trt.cli import benchmark, parity
from q8trt.cli.main import run_command
from q8trt.deployment.source import Source, overflow_batches
from q8trt.errors import ConfigError, DataError
from q8trt.evaluation.data import data_config
from q8trt.quantization.precision import Precision
from q8trt.quantization.target import Target
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.runs.fresh import fresh_run
from q8trt.runs.run import RUN_FILE, Run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig, DataRecord, load_dev, load_train, record_splits
from q8trt.tasks.heads import Head, HeadKind

REMEDY = "restore them"


def make_run(path: Path, data: DataConfig, **options: Any) -> Run:
    """Make a run folder as `finetune.py` does, without training."""
    config = FinetuneConfig(data, TrainingConfig(), **options)
    with fresh_run(path, ["finetune.py"], config, record_splits(load_train(data), load_dev(data))) as run:
        return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with data in it, which is the current folder."""
    write_sts_b(tmp_path / "project" / "data", 12, 6)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def run(project: Path) -> Run:
    """A run in the project, configured with relative paths."""
    return make_run(project / "runs" / "one", DataConfig("STS-B", data_dir="data"))


def append(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("99\tdog\tcat\t1.0\n")


def test_another_working_folder_reads_the_same_rows(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_dev(config_of_run(run).data)["dev"].first
    write_sts_b(tmp_path / "elsewhere" / "data", 20, 9)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_dev(config_of_run(run).data)["dev"].first == expected
    engine: Any = SimpleNamespace(manifest=SimpleNamespace(task=SimpleNamespace(name="STS-B", labels=[])), run=run)
    assert load_dev(data_config([engine], None))["dev"].first == expected


@pytest.mark.parametrize("split", ["train", "dev"])
def test_rows_that_changed_are_refused(run: Run, project: Path, split: str) -> None:
    append(project / "data" / f"{split}.tsv")
    read = {"train": load_train, "dev": load_dev}
    with pytest.raises(DataError, match=rf"^the {split} rows .* have changed since the run.*; {REMEDY}$"):
        read[split](config_of_run(run, REMEDY).data)
    read[{"train": "dev", "dev": "train"}[split]](config_of_run(run, REMEDY).data)  # the other one is as it was


def test_rows_that_are_gone_are_an_error_with_a_remedy(run: Run, project: Path) -> None:
    (project / "data" / "dev.tsv").unlink()
    with pytest.raises(DataError, match=rf"no dev\.tsv of STS-B in it.*; {REMEDY}$"):
        load_dev(config_of_run(run, REMEDY).data)


def test_rows_beyond_those_used_may_change(project: Path) -> None:
    run = make_run(project / "runs" / "few", DataConfig("STS-B", data_dir="data", max_train_samples=5))
    append(project / "data" / "train.tsv")
    assert len(load_train(config_of_run(run).data)) == 5


def test_a_limit_holds_for_the_rows_of_a_run(run: Run, project: Path) -> None:
    data = config_of_run(run).data.limited(2)
    assert load_dev(data)["dev"].first == load_dev(config_of_run(run).data)["dev"].first[:2]
    assert (len(load_dev(data.limited(99))["dev"]), len(load_train(data))) == (6, 12)
    append(project / "data" / "dev.tsv")  # behind the limit, and not the run's rows all the same
    with pytest.raises(DataError, match=r"7 rows with the fingerprint \w+, and run\.json has 6"):
        load_dev(data)


def test_benchmark_and_parity_limit_the_rows_of_a_run(run: Run) -> None:
    head, task = Head(HeadKind.REGRESSION), SimpleNamespace(name="STS-B", labels=[])
    engine: Any = SimpleNamespace(manifest=SimpleNamespace(task=task, head=head), run=run)
    assert len(load_dev(data_config([engine], None, 3))["dev"]) == 3
    other = DataConfig("STS-B", data_dir="data", max_eval_samples=5)
    assert [len(load_dev(data_config([engine], other, count))["dev"]) for count in (None, 4)] == [5, 4]
    for parser in (benchmark.PARSER, parity.PARSER):
        options = parser.read(["--max_eval_samples", "3"])
        assert (options.config.max_eval_samples, options.data) == (3, None)
        options = parser.read(["--max_eval_samples", "3", "--task", "STS-B", "--sample"])
        assert (options.config.max_eval_samples, options.data) == (3, DataConfig("STS-B", sample=True))


def test_a_project_that_was_moved_finds_its_files(run: Run, project: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    shutil.rmtree(project / "data")
    config = config_of_run(Run(moved / "runs" / "one"))
    assert config.data.data_dir == str(moved / "data")
    assert len(load_dev(config.data)["dev"]) == 6


def test_a_run_of_an_earlier_version_is_read_as_before(run: Run, project: Path) -> None:
    record = json.loads((run.path / RUN_FILE).read_text())
    del record["data"], record["folder"]
    record["config"]["data"]["data_dir"] = "data"
    for options in (record["config"], record["config"]["data"], record["config"]["training"]):
        options.popitem()  # an option that an earlier version did not have
    (run.path / RUN_FILE).write_text(json.dumps(record))
    append(project / "data" / "dev.tsv")
    assert len(load_dev(config_of_run(run).data)["dev"]) == 7
    assert config_of_run(run).from_pytorch_quantization is None


def test_paths_of_models_are_absolute_and_names_stay(project: Path) -> None:
    (project / "model").mkdir()
    data = DataConfig("STS-B", data_dir="data")
    config = FinetuneConfig(data, TrainingConfig(), "bert-base-uncased", from_fp32="model").absolute()
    assert (config.model_name_or_path, config.from_fp32) == ("bert-base-uncased", str(project / "model"))
    assert config.data.data_dir == str(project / "data")
    long = FinetuneConfig(data, TrainingConfig(), "x" * 300).absolute()
    assert long.model_name_or_path == "x" * 300


@pytest.mark.parametrize("command", [["finetune", "--resume", "runs/one"], ["calibrate"]])
def test_commands_refuse_rows_that_changed(
    command: list[str], project: Path, tiny_model: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from q8trt.models.checkpoints import save_checkpoint

    data = DataConfig("STS-B", data_dir="data", max_seq_length=32)
    run = make_run(project / "runs" / "one", data, model_name_or_path="model")
    for folder in (project / "model", run.path / "fp32"):
        save_checkpoint(folder, tiny_model(), tiny_tokenizer)
    run.finish_stage("fp32", {"checkpoint": "fp32"})
    append(project / "data" / "dev.tsv")
    assert run_command(command[0], command[1:]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" or (captured.out.count("\n") == 1 and "loading PyTorch" in captured.out)
    assert captured.err.count("\n") == 1
    assert f"the dev rows ({project / 'data'}) have changed since the run: 7 rows" in captured.err


def test_fp16_is_tried_on_the_rows_of_the_run_alone(
    run: Run, project: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of_run(run)
    source = Source(
        project, run, replace(config, data=replace(config.data, max_seq_length=32)), "fp32", Precision.FP16, Target.CPU
    )
    batches, text = overflow_batches(source, tiny_tokenizer)
    assert (sum(len(batch["input_ids"]) for batch in batches), text) == (12, "12 training rows of STS-B")
    append(project / "data" / "train.tsv")
    _, text = overflow_batches(source, tiny_tokenizer)
    assert "built-in" in text
    assert "have changed since the run" in caplog.text


BROKEN: dict[str, Any] = {
    "text": "x", "list": [], "splits": {"splits": []}, "rows": {"splits": {"dev": {"rows": "6", "fingerprint": "x"}}},
    "key": {"splits": {}, "text_columns": [], "label_column": "", "more": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_record_is_one_line(name: str, run: Run) -> None:
    record = json.loads((run.path / RUN_FILE).read_text())
    (run.path / RUN_FILE).write_text(json.dumps({**record, "data": BROKEN[name]}))
    with pytest.raises(ConfigError, match=r"run\.json is damaged: ") as caught:
        config_of_run(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("data", "max_eval_samples"), "3"), (("data", "task"), 3), (("data", "label_list"), [1]), (("data",), []),
        (("training", "seed"), "x"), (("training",), None), (("precision",), 8), (("from_fp32",), []),
        (("data", "more"), 1), (("more",), 1), (("recipe",), None),
    ],
)  # fmt: skip
def test_a_damaged_configuration_is_one_line(place: tuple[str, ...], value: Any, run: Run) -> None:
    config = run.record.config
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig.from_dict(json.loads(json.dumps(config)))
    assert "\n" not in str(caught.value)


# Columns


def write_csv(path: Path, *rows: str) -> str:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(path)


def own_files(folder: Path, train: tuple[str, ...], dev: tuple[str, ...], **options: Any) -> DataConfig:
    files = {
        "train_file": write_csv(folder / "train.csv", *train),
        "validation_file": write_csv(folder / "d.csv", *dev),
    }
    return DataConfig("custom", label_list=("no", "yes"), **files, **options)


def splits_of(data: DataConfig) -> DataRecord:
    return record_splits(load_train(data), load_dev(data))


def test_the_columns_taken_are_recorded_and_shown(tmp_path: Path) -> None:
    rows = ("id,title,body,stars", "1,a,b,yes", "2,c,d,no")
    options = {"text_column_names": ("title", "body"), "label_column_name": "stars"}
    data = own_files(tmp_path, rows, rows[:2], **options)
    record = splits_of(data)
    assert (record.text_columns, record.label_column) == (["title", "body"], "stars")
    assert record.columns_line() == "columns: title, body; label: stars"
    assert replace(record, label_column="").columns_line() == "columns: title, body"
    assert DataRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    run = make_run(tmp_path / "run", data)
    assert [*config_of_run(run).data.columns] == ["title", "body"]


def test_columns_chosen_without_options_are_recorded(tmp_path: Path) -> None:
    rows = ("text,label", "a,yes", "b,no")
    data = replace(own_files(tmp_path, rows, rows), text_column_names=None, task="SST-2", label_list=None)
    write_csv(tmp_path / "train.csv", "text,label", "a,1")
    write_csv(tmp_path / "d.csv", "text,label", "a,0")
    assert data.columns == ()
    assert [*config_of_run(make_run(tmp_path / "run", data)).data.columns] == ["text"]


def test_files_that_disagree_on_columns_are_refused(tmp_path: Path) -> None:
    data = DataConfig(
        "SST-2",
        train_file=write_csv(tmp_path / "a.csv", "text,label", "a,1"),
        validation_file=write_csv(tmp_path / "b.csv", "sentence,label", "b,1"),
    )
    with pytest.raises(
        DataError, match=r"file a\.csv has the columns text, label, and file b\.csv has sentence, label"
    ):
        splits_of(data)


# Remarks


def remarks(folder: Path, caplog: pytest.LogCaptureFixture, task: str, train: str, dev: str) -> list[str]:
    header = "sentence1,sentence2,label"
    files = {
        "train_file": write_csv(folder / "a.csv", header, *(f"a{n},b,{each}" for n, each in enumerate(train.split()))),
        "validation_file": write_csv(folder / "b.csv", header, *(f"c{n},d,{x}" for n, x in enumerate(dev.split()))),
    }
    with caplog.at_level(logging.WARNING, logger="q8trt"):
        splits_of(DataConfig(task, **files))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("task", "train", "dev", "expected"),
    [
        ("STS-B", "1 2", "3 3", ["all labels of dev are the same, so pearson is 0 for every model"]),
        ("STS-B", "1 2", "3 4", []),
        ("MRPC", "1 0", "0 0", ["no row of dev has the label equivalent, so f1 is 0 for every model"]),
        ("MRPC", "0 0", "0 1", ["no training row has the label equivalent, which rows of dev have"]),
        ("RTE", "0 1", "0 0", []),
    ],
)
def test_what_makes_scores_useless_is_said_first(
    task: str, train: str, dev: str, expected: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert remarks(tmp_path, caplog, task, train, dev) == expected


def test_training_rows_as_development_rows_are_remarked_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_csv(tmp_path / "a.csv", "sentence,label", "a,1", "b,0")
    splits_of(DataConfig("SST-2", train_file=path, validation_file=path))
    assert "dev has the same rows as the training data" in caplog.text
