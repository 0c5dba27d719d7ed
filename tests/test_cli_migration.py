"""`calibrate.py --from_pytorch_quantization`: a run from another library's ranges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_fixtures import Refused, data, refused  # noqa: F401
from safetensors.torch import load_file, save_file
from test_migration import names_of, quantized_state

from q8trt import api, files
from q8trt.cli.main import run_command
from q8trt.errors import ConfigError
from q8trt.models import checkpoints
from q8trt.tasks.glue import get_task


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """QDQBERT's weights and ranges in a file."""
    path = tmp_path / "qdqbert.safetensors"
    state = quantized_state(names_of(everything=True))
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


def test_a_run_that_an_engine_can_be_built_from(
    theirs: Path,
    data: Path,  # noqa: F811
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    source = ["--from_pytorch_quantization", str(theirs), "--model_name_or_path", str(tiny_checkpoint)]
    where = ["--task", "STS-B", "--data_dir", str(data), "--max_seq_length", "32", "--output_dir", str(run)]
    assert run_command("calibrate", [*source, *where]) == 0
    out = capsys.readouterr().out
    assert "recipe qdqbert: " in out
    assert "bmm_q" in out  # the note that its range was divided
    model, recipe = checkpoints.load_quantized(run / "ptq")
    assert recipe.name == "qdqbert"
    state = load_file(theirs)
    layer = "bert.encoder.layer.0."
    shared = [state[f"{layer}attention.self.{name}._input_quantizer._amax"] for name in ("query", "key", "value")]
    assert model.get_submodule(f"{layer}attention.self").input_quantizer.amax == torch.stack(shared).max()
    record = files.read_json(run / "run.json")
    assert record["config"]["from_pytorch_quantization"].endswith("qdqbert.safetensors")
    assert set(record["stages"]) == {"fp32", "ptq"}
    checkpoints.load_finetuned(run / "fp32", get_task("STS-B"))


def test_what_does_not_go_together(refused: Refused, theirs: Path, tiny_checkpoint: Path) -> None:  # noqa: F811
    theirs = theirs.rename(theirs.with_name("given.safetensors"))
    flag = ["--from_pytorch_quantization", str(theirs), "--task", "STS-B"]
    assert "needs --model_name_or_path DIR, the FP32 checkpoint" in refused("calibrate", *flag)
    model = ["--model_name_or_path", str(tiny_checkpoint)]
    assert "--recipe and --from_pytorch_quantization exclude" in refused("calibrate", *flag, *model, "--recipe", "full")
    assert "--sensitivity and --from_pytorch" in refused("calibrate", *flag, *model, "--sensitivity")
    with pytest.raises(ConfigError, match="needs --model_name_or_path DIR, the FP32 checkpoint"):
        api.calibrate(from_pytorch_quantization=str(theirs), task="STS-B")
    with pytest.raises(ConfigError, match="--sensitivity and --from_pytorch_quantization exclude each other"):
        api.sensitivity(tiny_checkpoint, from_pytorch_quantization=str(theirs), task="STS-B")
    missing = ["--from_pytorch_quantization", "absent.safetensors", "--task", "STS-B"]
    assert "absent.safetensors does not exist" in refused("calibrate", *missing, *model)


def test_a_layer_that_the_model_does_not_have(
    refused: Refused,  # noqa: F811
    data: Path,  # noqa: F811
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """Refused before there is a run."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("{name: mine, sites: {layer.9.gelu_out: {}}}", encoding="utf-8")
    where = ["--task", "STS-B", "--data_dir", str(data), "--max_seq_length", "32", "--recipe", str(recipe)]
    for command in ("calibrate", "finetune"):
        line = refused(command, *where, "--model_name_or_path", str(tiny_checkpoint))
        assert "layer 9, but the model's layers are 0 to 1" in line
