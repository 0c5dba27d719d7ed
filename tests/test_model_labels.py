"""Labels of a fine-tuned head: its own names win, whatever the order in which the task lists them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_data import write_mnli

from q8trt.cli.main import run_command
from q8trt.deployment.engine_folder import load_model
from q8trt.deployment.source import find_source
from q8trt.engine.folder import EngineFolder
from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
from q8trt.errors import CheckpointError, ConfigError
from q8trt.evaluation.data import data_config
from q8trt.models import checkpoints, label_order, load_config
from q8trt.quantization.precision import Precision
from q8trt.tasks.data import DataConfig
from q8trt.tasks.glue import custom_task, get_task

MNLI, SST2 = get_task("MNLI"), get_task("SST-2")
POS_NEG = custom_task("custom", ("pos", "neg"), is_pair=False)


def named(*names: str) -> Any:
    return SimpleNamespace(id2label=dict(enumerate(names)))


@pytest.mark.parametrize(
    ("names", "task", "order"),
    [
        (("negative", "positive"), SST2, None),
        (("NEGATIVE", "Positive"), SST2, None),
        (("POSITIVE", "NEGATIVE"), SST2, (1, 0)),
        (("LABEL_0", "LABEL_1"), SST2, None),
        (("0", "1"), SST2, None),
        (("contradiction", "neutral", "entailment"), MNLI, (2, 1, 0)),
        (("contradiction", "entailment", "neutral"), MNLI, (1, 2, 0)),
        (("Not Entailment", "entailment"), get_task("RTE"), (1, 0)),
        (("neg", "pos"), POS_NEG, (1, 0)),
        (("1", "0"), custom_task("custom", ("0", "1"), is_pair=False), (1, 0)),
        (("0", "1"), custom_task("custom", ("1", "0"), is_pair=False), (1, 0)),
        (("A", "a"), custom_task("custom", ("a", "A"), is_pair=False), (1, 0)),
        (("LABEL_0",), get_task("STS-B"), None),
    ],
)
def test_the_output_that_means_each_label(names: tuple[str, ...], task: Any, order: Any) -> None:
    assert label_order(named(*names), task, "DIR") == order


@pytest.mark.parametrize("names", [("a", "b"), ("negative", "b"), ("LABEL_1", "LABEL_0"), ("1", "0")])
def test_outputs_of_other_names_are_not_guessed(names: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError) as caught:
        label_order(named(*names), SST2, "DIR")
    message = str(caught.value)
    assert message.startswith(
        f"DIR names its outputs {', '.join(names)}, and the task's labels are negative, positive, so q8trt"
    )
    assert '"id2label": {"0": "negative", "1": "positive"}' in message


@pytest.fixture
def checkpoint(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """``checkpoint("neg", "pos", architecture="bert")``: a fine-tuned checkpoint whose outputs have these names."""

    def save(*names: str, architecture: str = "bert", **changes: Any) -> Path:
        model = tiny_model(architecture, len(names), initializer_range=1.0)
        folder = tmp_path / f"checkpoint-{architecture}"
        checkpoints.save_checkpoint(folder, model, tiny_tokenizer)
        (folder / "hashes.json").unlink(missing_ok=True)  # as one from elsewhere
        data = json.loads((folder / "config.json").read_text())
        data |= {"id2label": {str(number): name for number, name in enumerate(names)}, **changes}
        data["label2id"] = {name: number for number, name in enumerate(names)}
        (folder / "config.json").write_text(json.dumps(data))
        return folder

    return save


def test_the_head_is_put_into_the_tasks_order(
    architecture: str, checkpoint: Any, tiny_model: Any, tiny_batch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("contradiction", "entailment", "neutral")
    original = tiny_model(architecture, 3, initializer_range=1.0)
    with caplog.at_level("INFO", "q8trt"):
        loaded = checkpoints.load_finetuned(checkpoint(*names, architecture=architecture), MNLI).eval()
    assert "outputs contradiction, entailment, neutral are reordered to entailment, neutral, contr" in caplog.text
    assert list(loaded.config.id2label.values()) == list(MNLI.labels)
    batch = tiny_batch(architecture)
    with torch.no_grad():
        theirs, ours = original(**batch).logits, loaded(**batch).logits
    for number, label in enumerate(MNLI.labels):
        torch.testing.assert_close(ours[:, number], theirs[:, names.index(label)])
    assert not torch.allclose(ours, theirs)


def write_reviews(folder: Path) -> list[str]:
    """Rows whose labels are the names; returns the options that read them."""
    rows = ["sentence,label", *(f"a good dog {n},pos\na bad cat {n},neg" for n in range(8))]
    for name in ("train.csv", "dev.csv"):
        (folder / name).write_text("\n".join(rows) + "\n")
    files = ["--train_file", str(folder / "train.csv"), "--validation_file", str(folder / "dev.csv")]
    return ["--task", "custom", *files, "--text_column_names", "sentence", "--max_seq_length", "32"]


def test_calibrating_keeps_what_each_output_means(
    checkpoint: Any, tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    folder, run = checkpoint("neg", "pos"), tmp_path / "run"
    options = ["--model_name_or_path", str(folder), "--label_list", "pos", "neg", "--output_dir", str(run)]
    assert run_command("calibrate", [*options, *write_reviews(tmp_path)]) == 0
    original = tiny_model("bert", 2, initializer_range=1.0)
    encoded = tiny_tokenizer("a good dog", return_tensors="pt")
    with torch.no_grad():
        theirs = original(**encoded).logits[0]
    for precision, tolerance in ((Precision.FP32, 1e-5), (Precision.INT8, 0.5)):
        model, _ = load_model(find_source(precision, str(run), "runs"))
        assert list(model.config.id2label.values()) == ["pos", "neg"]
        with torch.no_grad():
            ours = model(**encoded).logits[0]
        torch.testing.assert_close(ours, theirs[[1, 0]], atol=tolerance * float(theirs.abs().max()), rtol=0)


def test_a_quantized_checkpoint_of_another_order_than_its_run_is_not_built(checkpoint: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--model_name_or_path", str(checkpoint("neg", "pos")), "--output_dir", str(run)]
    assert run_command("calibrate", [*options, "--label_list", "neg", "pos", *write_reviews(tmp_path)]) == 0
    source = find_source(Precision.INT8, str(run), "runs")
    data = replace(source.config.data, label_list=("pos", "neg"))
    with pytest.raises(CheckpointError, match=r"ptq has the labels in another order than its run \(pos, neg\)"):
        load_model(replace(source, config=replace(source.config, data=data)))


@pytest.mark.parametrize("command", ["calibrate", "finetune", "sensitivity", "teacher"])
def test_every_command_refuses_other_names(
    command: str, checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(checkpoint("a", "b"))
    data = ["--label_list", "pos", "neg", *write_reviews(tmp_path), "--output_dir", "run"]
    sound = Path(shutil.copytree(folder, tmp_path / "sound"))
    config = json.loads((sound / "config.json").read_text()) | {"id2label": {"0": "pos", "1": "neg"}}
    (sound / "config.json").write_text(json.dumps(config))
    arguments = {
        "calibrate": ("calibrate", ["--model_name_or_path", folder]),
        "finetune": ("finetune", ["--from_fp32", folder]),
        "sensitivity": ("calibrate", ["--model_name_or_path", folder, "--sensitivity"]),
        "teacher": ("finetune", ["--from_fp32", str(sound), "--teacher_model_name_or_path", folder]),
    }[command]
    assert run_command(arguments[0], [*arguments[1], *data]) == 2
    error = capsys.readouterr().err
    assert f"{folder} names its outputs a, b, and the task's labels are pos, neg" in error
    assert len([line for line in error.splitlines() if "same rows as the training data" not in line]) == 1
    assert not Path("run").exists()


def test_a_teacher_of_another_order_teaches_by_name(
    checkpoint: Any, tiny_checkpoint_of: Any, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8trt.training import stage as training

    stages: list[Any] = []
    monkeypatch.setattr(
        training, "train_stage", lambda stage, *_: stages.append(stage) or training.StageResult(0, 0, 0, 0)
    )
    monkeypatch.chdir(tmp_path)
    write_mnli(tmp_path / "mnli")
    teacher = str(checkpoint("contradiction", "entailment", "neutral"))
    options = ["--task", "MNLI", "--data_dir", "mnli", "--max_seq_length", "32", "--use_cpu", "--output_dir", "run"]
    student = str(tiny_checkpoint_of("bert", 3))
    assert run_command("finetune", [*options, "--from_fp32", student, "--teacher_model_name_or_path", teacher]) == 0
    head = tiny_model("bert", 3, initializer_range=1.0).classifier.weight
    assert torch.equal(stages[0].distillation.teacher.classifier.weight, head[[1, 2, 0]])


def test_ranges_of_another_library_come_with_a_head_that_is_not_reordered(
    checkpoint: Any, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from q8trt.runs.config import FinetuneConfig
    from q8trt.runs.training_config import TrainingConfig
    from q8trt.training.finetuning import load_inputs

    write_reviews(tmp_path)
    files = {"train_file": str(tmp_path / "train.csv"), "validation_file": str(tmp_path / "dev.csv")}
    data = DataConfig("custom", **files, text_column_names=("sentence",), label_list=("pos", "neg"), max_seq_length=32)
    config = FinetuneConfig(
        data=data, training=TrainingConfig(), from_fp32=str(checkpoint("neg", "pos")), qat=False,
        from_pytorch_quantization="other",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="in the order neg, pos, custom in the order pos, neg, and --from_pytorch_"):
        load_inputs(config)
    assert load_inputs(replace(config, data=replace(data, label_list=("neg", "pos")))).train.labels is not None


def test_many_labels_at_once_are_no_softmax(checkpoint: Any) -> None:
    folder = checkpoint("neg", "pos", problem_type="multi_label_classification")
    with pytest.raises(CheckpointError, match="answers each label independently"):
        checkpoints.load_finetuned(folder, POS_NEG)
    assert checkpoints.load_pretrained(str(folder), POS_NEG).config.problem_type == "single_label_classification"


def test_two_scores_are_no_labels(checkpoint: Any) -> None:
    folder = checkpoint("LABEL_0", "LABEL_1", problem_type="regression")
    with pytest.raises(CheckpointError, match="predicts 2 scores"):
        checkpoints.load_finetuned(folder, POS_NEG)


def engine(labels: list[str]) -> EngineFolder:
    task = TaskInfo("custom", labels, not labels, False, "accuracy")
    model = ModelInfo("tiny", "bert", len(labels) or 1, 64, 0, 32)
    return EngineFolder(
        Path("engine"), Manifest(task, model, Precision.INT8, None, ["input_ids", "attention_mask"], 20)
    )


@pytest.mark.parametrize(("labels", "fits"), [(["pos", "neg"], True), (["neg", "pos"], False), ([], False)])
def test_an_engine_is_scored_on_rows_that_count_labels_as_it_does(labels: list[str], fits: bool) -> None:
    data = DataConfig("custom", train_file="a.csv", validation_file="b.csv", label_list=("pos", "neg"))
    if fits:
        assert data_config([engine(labels)], data) == data
    else:
        with pytest.raises(ConfigError, match=r"^engine has the labels .*, the data pos neg; give --label_list"):
            data_config([engine(labels)], data)


def test_malformed_names_of_outputs(checkpoint: Any) -> None:
    folder = checkpoint("neg", "pos")
    config = json.loads((folder / "config.json").read_text())
    for names in ({"0": "a", "2": "b"}, {"a": "0", "b": "1"}, {}, {"00": "a", "1": "b"}):
        (folder / "config.json").write_text(json.dumps(config | {"id2label": names}))
        with pytest.raises(CheckpointError, match="id2label must name all outputs, 0, 1, 2 and so on"):
            load_config(str(folder))
