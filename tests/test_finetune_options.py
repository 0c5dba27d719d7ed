"""Options that finetune.py refuses before it makes a run: an unsuitable teacher, or a missing library or GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_data import SHORT, write_sts_b

from q8trt.cli.main import run_command
from q8trt.errors import ConfigError, Q8TRTError
from q8trt.runs.config import FinetuneConfig

TEACHER = "--teacher_model_name_or_path"


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A short run on STS-B, in an empty working folder, from QAT on."""
    monkeypatch.chdir(tmp_path)
    write_sts_b(tmp_path / "data")
    steps = ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2"]
    return ["--task", "STS-B", "--data_dir", "data", "--from_fp32", str(tiny_checkpoint), *SHORT, *steps]


@pytest.fixture
def refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs finetune with `options` and more; it must fail with one line, and no run may be announced or made."""

    def run(*more: str) -> str:
        assert run_command("finetune", [*options, *more]) == 2
        printed = capsys.readouterr()
        assert "run:" not in printed.out
        assert not Path("runs").exists()
        [line] = printed.err.splitlines()
        return line.removeprefix("finetune: error: ")

    return run


def save(folder: str, model: Any, tokenizer: Any, **config: Any) -> str:
    from q8trt.models.checkpoints import save_checkpoint

    save_checkpoint(folder, model, tokenizer)
    Path(folder, "hashes.json").unlink()  # as one from elsewhere
    path = Path(folder, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_fp16_without_a_gpu(refused: Callable[..., str]) -> None:
    assert refused("--fp16").startswith("--fp16 needs a CUDA GPU, and there is none")


def test_a_library_that_is_not_installed(refused: Callable[..., str]) -> None:
    import importlib.util

    if importlib.util.find_spec("pytorch_quantization"):
        pytest.skip("pytorch-quantization is installed here")
    assert refused("--quantizer", "pytorch-quantization").startswith("pytorch-quantization is not installed: ")


def test_an_unknown_library(refused: Callable[..., str]) -> None:
    assert "argument --quantizer: invalid choice: 'modelop'" in refused("--quantizer", "modelop")
    assert "invalid choice: 'int8+fp16' (choose from 'fp32', 'int8')" in refused("--precision", "int8+fp16")


def test_a_teacher_that_does_not_exist(refused: Callable[..., str]) -> None:
    assert refused(TEACHER, "nowhere").startswith("model 'nowhere' is neither a folder here nor reachable on the hub")


def test_a_teacher_of_another_vocabulary(
    refused: Callable[..., str], tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["zebra"])
    folder = save("teacher", tiny_model(vocab_size=len(tokenizer)), tokenizer)
    message = refused(TEACHER, folder)
    count = len(tiny_tokenizer)
    assert message.startswith(
        f"{TEACHER} teacher has another vocabulary than the model ({count + 1} tokens, the model's"
    )
    assert f"has {count})" in message


def test_a_teacher_of_fewer_positions(
    refused: Callable[..., str], tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.model_max_length = 16
    folder = save("teacher", tiny_model(max_position_embeddings=16), tokenizer)
    assert (
        refused(TEACHER, folder) == f"{TEACHER} teacher reads at most 16 tokens; lower --max_seq_length from 32 to that"
    )


def test_a_teacher_of_another_number_of_labels(refused: Callable[..., str], tiny_checkpoint_of: Any) -> None:
    assert "has a head of 3 outputs, STS-B needs 1" in refused(TEACHER, str(tiny_checkpoint_of("bert", 3)))


def test_a_teacher_without_a_head(
    refused: Callable[..., str], tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    folder = save("teacher", tiny_model(), tiny_tokenizer, architectures=["BertModel"])
    assert "has no fine-tuned classification head (BertModel)" in refused(TEACHER, folder)


def test_the_teacher_teaches(
    options: list[str], tiny_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint given, with the weights given; the run's own FP32 model without one."""
    import torch

    from q8trt.training import stage as training

    made: list[Any] = []
    original = training.train_stage
    monkeypatch.setattr(training, "train_stage", lambda stage, *args: made.append(stage) or original(stage, *args))
    teacher = tiny_model(seed=3)
    folder = save("teacher", teacher, tiny_tokenizer)
    weights = ["--label_loss_weight", "0", "--distillation_weight", "2", "--hidden_loss_weight", "3"]
    assert run_command("finetune", [*options, TEACHER, folder, *weights, "--output_dir", "a"]) == 0
    assert run_command("finetune", [*options, "--output_dir", "b"]) == 0
    assert run_command("finetune", [*options, "--no_distillation", "--output_dir", "c"]) == 0
    larger, own, none = (stage.distillation for stage in made)
    assert (larger.label_weight, larger.logit_weight, larger.hidden_weight, larger.attention_weight) == (0, 2, 3, 0)
    assert (own.label_weight, own.logit_weight, own.hidden_weight, own.attention_weight) == (0.5, 0.5, 0, 0)
    assert none is None
    key = "classifier.weight"
    assert torch.equal(larger.teacher.state_dict()[key], teacher.state_dict()[key])
    assert not torch.equal(own.teacher.state_dict()[key], teacher.state_dict()[key])
    config = json.loads(Path("a/run.json").read_text())["config"]
    assert config["teacher_model_name_or_path"] == str(Path("teacher").absolute())
    assert config["quantizer"] == "modelopt"
    assert config["training"]["hidden_loss_weight"] == 3


@pytest.mark.parametrize("without", [["--precision", "fp32"], ["--no_qat"], ["--no_distillation"]])
def test_a_teacher_with_nobody_to_teach(without: list[str], refused: Callable[..., str]) -> None:
    assert refused(TEACHER, "anything", *without).startswith(
        f"{TEACHER} is the teacher of QAT, which --precision fp32, "
    )


def test_a_run_with_a_teacher_can_be_calibrated_again(tiny_checkpoint: Path) -> None:
    """calibrate.py takes a run's configuration and leaves QAT out: its teacher is of no concern then."""
    from dataclasses import replace

    from q8trt.runs.training_config import TrainingConfig
    from q8trt.tasks.data import DataConfig
    from q8trt.training.finetuning import load_inputs

    data = DataConfig("STS-B", sample=True, max_seq_length=32)
    config = FinetuneConfig(data, TrainingConfig(), str(tiny_checkpoint), teacher_model_name_or_path="no longer there")
    with pytest.raises(Q8TRTError, match="no longer there"):
        load_inputs(config)
    assert len(load_inputs(replace(config, qat=False)).train) > 0


def test_a_run_of_an_earlier_version_still_resumes() -> None:
    """Its run.json lacks the newer fields: they take their defaults, which do what was done then."""
    from q8trt.runs.training_config import TrainingConfig
    from q8trt.tasks.data import DataConfig

    data = FinetuneConfig(DataConfig("STS-B", sample=True), TrainingConfig()).to_dict()
    data = json.loads(json.dumps(data))
    for name in ("quantizer", "teacher_model_name_or_path"):
        del data[name]
    for name in ("hidden_loss_weight", "attention_loss_weight", "quant_start_step", "range_learning_rate"):
        del data["training"][name]
    config = FinetuneConfig.from_dict(data)
    assert config.quantizer == "modelopt"
    assert config.teacher_model_name_or_path is None
    assert config.training == TrainingConfig()
    with pytest.raises(ConfigError, match="cannot be read"):
        FinetuneConfig.from_dict({**data, "unheard_of": 1})


def test_qat_starts_from_the_ranges_that_the_recipe_gives_it(options: list[str]) -> None:
    """The calibrated checkpoint has the recipe's own: here one that clips nothing and one that clips almost all."""
    from safetensors.torch import load_file

    recipe = """
        name: two
        activations: {calibrator: max}
        weights: {axis: 0}
        sites: {gelu_out: {}, ffn_output.weight: {}}
        smoothquant: 0.5
        qat: {start: {activations: {calibrator: percentile, percentile: 60}, smoothquant: null}}
    """
    Path("two.yaml").write_text(recipe)
    assert run_command("finetune", [*options, "--recipe", "two.yaml", "--output_dir", "a"]) == 0
    key = "bert.encoder.layer.1.output.dense.input_quantizer._amax"
    widest, clipped = (float(load_file(f"a/{stage}/model.safetensors")[key]) for stage in ("ptq", "int8"))
    assert clipped < 0.5 * widest
    noted = {stage: json.loads(Path(f"a/{stage}/quantization.json").read_text()) for stage in ("ptq", "int8")}
    recipes = {stage: data.get("recipe", data) for stage, data in noted.items()}
    assert recipes["ptq"]["sites"]["gelu_out"]["calibrator"] == "max"
    assert recipes["int8"]["sites"]["gelu_out"]["calibrator"] == "percentile"
    assert recipes["int8"]["smoothquant"] is None
    again = FinetuneConfig.from_dict(json.loads(Path("a/run.json").read_text())["config"])
    assert again.recipe.qat_start is not None
