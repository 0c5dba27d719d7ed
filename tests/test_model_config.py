"""config.json of a checkpoint: what is damaged, absurd or another kind of model is refused in one line, in no time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import WITH_TOKEN_TYPES

from q8trt.cli.main import run_command
from q8trt.errors import CheckpointError, DataError
from q8trt.models import load_config, positions, takes_token_types
from q8trt.models.checkpoints import load_finetuned, load_pretrained, save_checkpoint
from q8trt.models.config_file import ModelShape, check_config
from q8trt.quantization.architectures import ARCHITECTURES
from q8trt.tasks.glue import get_task

STSB = get_task("STS-B")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings", "type_vocab_size")  # fmt: skip


@pytest.fixture(scope="module")
def configs(tiny_config: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Architecture -> the keys of its config.json."""
    return {name: json.loads(tiny_config(name).to_json_string(use_diff=False)) for name in ARCHITECTURES}


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_config(data, "DIR")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("DIR")
    return message


def test_a_sound_file(architecture: str, configs: dict[str, Any]) -> None:
    shape = check_config(configs[architecture], "DIR")
    assert (shape.hidden_size, shape.num_hidden_layers, shape.num_attention_heads) == (32, 2, 2)


@pytest.mark.parametrize(
    "value", [0, -1, 10**9, 2**40, 2**62, "32", "", None, True, 0.5, 1e308, [], [32], {}, {"a": 1}], ids=str
)
@pytest.mark.parametrize("key", SIZES)
def test_a_size_of_another_type_or_out_of_range(
    architecture: str, key: str, value: Any, configs: dict[str, Any]
) -> None:
    if ARCHITECTURES[architecture].token_type_embeddings is None and key == "type_vocab_size":
        return  # it has no token types
    name = ARCHITECTURES[architecture].config_name(key)
    assert f"config.json: {key} " in refusal(configs[architecture] | {name: value})


@pytest.mark.parametrize(
    "key", ["hidden_dropout_prob", "layer_norm_eps", "initializer_range", "hidden_act", "pad_token_id"]
)
@pytest.mark.parametrize("value", ["0.1", -1, 10**12, [], {}, True], ids=str)
def test_a_number_that_no_model_has(key: str, value: Any, configs: dict[str, Any]) -> None:
    message = refusal(configs["bert"] | {key: value})
    assert key in message or "unknown activation '0.1'" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 5}, "5 attention heads do not divide the hidden size 32"),
        ({"hidden_act": "gelo"}, "unknown activation 'gelo'"),
        ({"hidden_size": 65536, "intermediate_size": 2**20}, "billion parameters; expected at most"),
        ({"pad_token_id": 99999}, "pad_token_id is 99999, expected a row of the token table"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"is_decoder": True}, "DIR is a decoder (is_decoder in config.json is true)"),
        ({"add_cross_attention": True}, "is a decoder (add_cross_attention"),
        ({"is_encoder_decoder": True}, "is a decoder (is_encoder_decoder"),
        ({"position_embedding_type": "relative_key"}, "positions of type 'relative_key'"),
        ({"pruned_heads": {"0": [1]}}, "has pruned attention heads"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is already quantized by bitsandbytes"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "is already quantized by modelopt"),
        ({"quantization_config": "x"}, "is already quantized (quantization_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "needs its own Python code (auto_map in config.json), which q8trt never"),
        ({"auto_map": {"AutoConfig": "a/b--x.Y"}, "model_type": "new"}, "needs its own Python code"),
        ({"model_type": "gpt2"}, "DIR is of type 'gpt2', a decoder that generates text, not BERT-like"),
        ({"model_type": "qdqbert"}, "python calibrate.py --model_name_or_path DIR --from_pytorch_quantization DIR"),
        ({"model_type": ["bert"]}, "DIR is of type ['bert'], not BERT-like"),
        ({"model_type": None}, "DIR is of type None"),
        ({"id2label": {"0": None}}, "id2label"),
        ({"id2label": ["a"]}, "id2label must be"),
        ({"id2label": None, "num_labels": 10**9}, "num_labels is 1000000000"),
        ({"architectures": "BertModel"}, "architectures must be"),
        ({"problem_type": 3}, "problem_type must be"),
    ],
)  # fmt: skip
def test_a_model_that_q8trt_cannot_run(change: dict[str, Any], words: str, configs: dict[str, Any]) -> None:
    assert words in refusal(configs["bert"] | change)


def test_robertas_positions_begin_after_the_paddings(configs: dict[str, Any]) -> None:
    assert "pad_token_id is None" in refusal(configs["roberta"] | {"pad_token_id": None})
    assert "RoBERTa's positions begin" in refusal(configs["roberta"] | {"max_position_embeddings": 1})


def test_mpnets_positions_begin_at_two_and_its_distances_have_32_buckets(configs: dict[str, Any]) -> None:
    assert "positions begin after the padding's, at 2" in refusal(configs["mpnet"] | {"max_position_embeddings": 2})
    for count in (0, 31, 10**6, "32"):
        assert "relative_attention_num_buckets" in refusal(configs["mpnet"] | {"relative_attention_num_buckets": count})


def test_missing_keys_have_transformers_defaults() -> None:
    from transformers import AutoConfig

    for architecture, entry in ARCHITECTURES.items():
        required = {
            name: each.values[0] for name, each in entry.requirements.items() if each.default not in each.values
        }
        shape = check_config({"model_type": architecture, **required}, "DIR")
        theirs = AutoConfig.for_model(architecture)
        for name in SIZES[: 7 if entry.token_type_embeddings else 6]:
            assert getattr(shape, name) == getattr(theirs, entry.config_name(name)), (architecture, name)
        assert shape.pad_token_id == theirs.pad_token_id


def test_the_number_of_parameters(architecture: str, tiny_model: Any, configs: dict[str, Any]) -> None:
    counted = sum(each.numel() for each in tiny_model(architecture).base_model.parameters())
    entry = ARCHITECTURES[architecture]
    assert 0.9 * counted < check_config(configs[architecture], "DIR").parameters(entry) <= counted
    assert ModelShape().parameters(ARCHITECTURES["bert"]) > 100e6


# Folders


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def change(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"7", b'"x"', b"null", b"\xff\xfe", b"{}", b'{"model_type": "bert", "vocab_size": NaN}',
        b'{"model_type": "bert", "x": ' + b"[" * 100_000, b'{"model_type": "bert", "hidden_size": ' + b"9" * 5000 + b"}",
        b'{"model_type": "\\ud800"}',
    ],
    ids=range(12),
)  # fmt: skip
def test_damaged_files(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError) as caught:
        load_config(str(folder))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_config(folder: Path) -> None:
    import os

    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_config(str(folder))


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "../" * 3000, "a b", "~", "-x", "\u202e"])
def test_names_that_no_model_has(name: str) -> None:
    with pytest.raises(CheckpointError):
        load_config(name)


def test_sizes_that_the_weights_do_not_have_are_not_allocated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lambda *_, **__: pytest.fail("loads"))
    change(folder, vocab_size=5_000_000)
    with pytest.raises(
        CheckpointError, match=r"the weights do not fit config.json: it describes 160 million parameters"
    ):
        load_finetuned(folder, STSB)


@pytest.mark.parametrize(
    "keys",
    [
        {"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}, {"torchscript": True},
        {"chunk_size_feed_forward": 3}, {"gradient_checkpointing": True}, {"torch_dtype": "float16"}, {"dtype": "floaty"},
        {"_attn_implementation": "flash_attention_2"}, {"attn_implementation": "flash_attention_2"}, {"pruned_heads": {}},
        {"task_specific_params": 3}, {"label2id": []}, {"problem_type": "x"}, {"quantization_config": None},
        {"_name_or_path": 5}, {"position_embedding_type": "absolute"}, {"use_cache": "x"}, {"to_dict": 1},
    ],
    ids=str,
)  # fmt: skip
def test_oddities_that_do_not_change_the_model(
    keys: dict[str, Any], folder: Path, tiny_model: Any, tiny_tokenizer: Any, tiny_batch: Any, tmp_path: Path
) -> None:
    """Such a run once trained a whole stage and was lost at its first save."""
    import torch

    change(folder, **keys)
    model = load_finetuned(folder, STSB).eval()
    batch = tiny_batch()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, tiny_model()(**batch).logits)
    save_checkpoint(tmp_path / "saved", model, tiny_tokenizer)
    assert load_finetuned(tmp_path / "saved", STSB).config.dtype is torch.float32


def test_a_base_model_may_have_been_anything(folder: Path) -> None:
    change(folder, problem_type="multi_label_classification", id2label={"0": "a", "1": "b", "2": "c"})
    assert load_pretrained(str(folder), STSB).config.num_labels == 1


def test_foreign_quantizers_are_named(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    amax = {"bert.encoder.layer.0.attention.self.query._input_quantizer._amax": torch.ones(())}
    save_file(load_file(weights) | amax, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has quantizers of another library .*--from_pytorch_quantization"):
        load_finetuned(folder, STSB)


def test_inputs_and_positions(architecture: str, tiny_config: Any) -> None:
    config = tiny_config(architecture)
    assert takes_token_types(config) == (architecture in WITH_TOKEN_TYPES)
    assert positions(config) == {"roberta": 65}.get(architecture, 64)
    config.type_vocab_size = 2
    assert takes_token_types(config) == (ARCHITECTURES[architecture].token_type_embeddings is not None)


@pytest.mark.parametrize("command", ["calibrate", "finetune", "build-engine"])
def test_commands_say_it_before_they_start(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_data import write_sts_b

    monkeypatch.chdir(tmp_path)
    write_sts_b(tmp_path / "data", 8, 4)
    change(folder, is_decoder=True)
    data = ["--task", "STS-B", "--data_dir", "data", "--max_seq_length", "32", "--output_dir", "run"]
    model = ["--model_name_or_path", "model"]
    if command == "build-engine":
        data, model = ["--fp32"], ["--checkpoint", str(_run_of(folder, tmp_path))]
    assert run_command(command, [*data, *model]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is a decoder (is_decoder in config.json is true), whose tokens attend only to earlier ones" in line
    assert not Path("run").exists()


def _run_of(folder: Path, tmp_path: Path) -> Path:
    from q8trt.runs.config import FinetuneConfig
    from q8trt.runs.run import new_run
    from q8trt.runs.training_config import TrainingConfig
    from q8trt.tasks.data import DataConfig

    config = FinetuneConfig(DataConfig("STS-B"), TrainingConfig())
    run = new_run(tmp_path / "made", {}, "STS-B", config.to_dict())
    shutil.copytree(folder, run.path / "fp32")
    run.finish_stage("fp32", {"checkpoint": "fp32", "scores": {}})
    return Path(run.path)


@pytest.mark.parametrize(("ids", "types", "words"), [
    ([[2, 999, 3]], [[0, 0, 0]], "token id 999, but the model's table has 3"),
    ([[2, -5, 3]], [[0, 0, 0]], "token id -5, but"),
    ([[2, 5, 3]], [[0, 9, 0]], r"token type 9, but the model's table has 2 rows \(0 to 1\)"),
    ([[2] * 65], [[0] * 65], "65 tokens in a row, but the model has 64 positions"),
])  # fmt: skip
def test_rows_beyond_a_table(ids: Any, types: Any, words: str, tiny_config: Any) -> None:
    from q8trt.models import check_rows
    from q8trt.tasks.data import Features

    rows = Features(task=STSB, split="train", source="rows.tfrecord", input_ids=ids, token_type_ids=types, labels=None)
    with pytest.raises(DataError, match=f"^rows.tfrecord: {words}"):
        check_rows(rows, tiny_config())
    check_rows(Features(task=STSB, split="x", source="x", input_ids=[], token_type_ids=[], labels=None), tiny_config())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"x": "../model.safetensors"}}', "names '../model.safetensors', which is outside the folder"),
        ('{"weight_map": {"x": "/etc/passwd"}}', "names '/etc/passwd', which is outside the folder"),
        ('{"weight_map": 3}', "expected 'weight_map', an object of file names"),
        ("[" * 3000, "nested more than 64 levels deep"),
    ],
)
def test_shards_are_files_of_the_folder(folder: Path, index: str, message: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        load_finetuned(folder, STSB)
