"""Sites exist in the real models; an inserted but disabled quantizer changes nothing, not by a bit."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ALIKE, layer_count
from transformers import GPT2Config, GPT2ForSequenceClassification

from q8trt.errors import CheckpointError, ConfigError, QuantizationError
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.quantization.architectures import ARCHITECTURES, QUANTIZED_TYPES, architecture_of
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import (
    insert_quantizers,
    model_quantizers,
    set_quantization,
    weights_quantized_once,
)
from q8trt.quantization.modules import ATTENTION, QuantLinear
from q8trt.quantization.recipe import Recipe, load_recipe
from q8trt.quantization.sites import ACTIVATION, OUTSIDE_LAYERS, POSITION_SITES, SITE_KINDS, encoder_sites
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

LINEAR = load_recipe("linear")
#: Every site there is.
ALL = Recipe.from_dict({"name": "all", "weights": {"axis": 0}, "sites": dict.fromkeys(SITE_KINDS)})
IN_LAYERS = [name for name in SITE_KINDS if name not in (*OUTSIDE_LAYERS, *POSITION_SITES)]
BMM = ("bmm_q", "bmm_k", "softmax_out", "bmm_v")
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
#: The input features of the module behind each site, from the papers' shapes: hidden 32, intermediate 64.
IN_FEATURES = {name: 64 if name in ("gelu_out", "ffn_output.weight") else 32 for name in SITE_KINDS}


@pytest.fixture
def pair(architecture: str, tiny_model: Callable[..., Any], request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Hugging Face's own model, and one of the same weights with disabled quantizers at every site; no dropout."""
    entry, implementation = ARCHITECTURES[architecture], getattr(request, "param", "eager")
    if implementation != "eager" and not entry.attention_registry:
        pytest.skip("transformers has one implementation of its attention")
    options = {entry.config_name(name): 0.0 for name in DROPOUTS}
    original, quantized = (tiny_model(architecture, attn_implementation=implementation, **options) for _ in range(2))
    insert_quantizers(quantized, ALL)
    assert (quantized.config._attn_implementation == ATTENTION) == entry.attention_registry
    set_quantization(quantized, enabled=False)
    return original, quantized


@pytest.mark.parametrize("head", [True, False], ids=["classifier", "bare encoder"])
def test_sites_exist_in_the_models(architecture: str, head: bool, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(architecture)
    model = model if head else model.base_model
    sites = encoder_sites(model)
    inside = [site for site in sites if site.layer is not None]
    layers = range(layer_count(architecture))
    assert [site.key for site in inside] == [f"layer.{layer}.{name}" for layer in layers for name in IN_LAYERS]
    for site in sites:
        module = model.get_submodule(site.module)
        if site.name == "qkv_input" or site.name in BMM:  # the self-attention module, above the three projections
            assert sum(isinstance(child, torch.nn.Linear) for child in module.children()) >= 3
        elif "residual" in site.name:  # what holds the LayerNorm that follows the Add
            assert any(isinstance(child, torch.nn.LayerNorm) for child in module.children())
        elif site.name.startswith("embeddings."):
            assert isinstance(module, torch.nn.Embedding)
        else:
            assert isinstance(module, torch.nn.Linear), site
            if site.layer is not None:
                assert module.in_features == IN_FEATURES[site.name]
        if site.kind != ACTIVATION:
            assert model.get_parameter(site.parameter) is module.weight
    assert len({site.quantizer for site in sites}) == len(sites)


#: Of the whole model and of the bare encoder. The "pooler" of all but BERT is in the head.
IN_HEAD = (["word", "position", "token_type"], ["pooler", "classifier"], [])
OUTSIDE = {
    "bert": (["word", "position", "token_type"], ["pooler", "classifier"], ["pooler"]),
    "distilbert": (["word", "position"], ["pooler", "classifier"], []),
    "mpnet": (["word", "position"], ["pooler", "classifier"], []),
    "albert": (["word", "position", "token_type"], ["pooler", "classifier"], ["pooler"]),
}


def test_sites_outside_the_layers(architecture: str, tiny_model: Callable[..., Any]) -> None:
    tables, heads, bare = OUTSIDE.get(architecture, IN_HEAD)
    model = tiny_model(architecture)
    for sites, expected in ((encoder_sites(model), heads), (encoder_sites(model.base_model), bare)):
        keys = [site.key for site in sites if site.layer is None]
        wanted = [f"embeddings.{table}" for table in tables]
        assert keys == wanted + [f"{head}.{part}" for head in expected for part in ("input", "weight")]
        assert [site.key for site in sites][: len(tables)] == wanted  # computed first


@pytest.mark.parametrize(("name", "like"), ALIKE.items())
def test_an_architecture_of_another_name(
    name: str, like: str, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], tmp_path: Path
) -> None:
    entry, other = ARCHITECTURES[name], ARCHITECTURES[like]
    assert replace(entry, model_type=like, label=other.label, config_defaults=other.config_defaults) == other
    original, model, batch = tiny_model(name), tiny_model(name), tiny_batch(name)
    assert list(insert_quantizers(model, ALL)) == list(insert_quantizers(tiny_model(like), ALL))
    calibrate(model, ALL, [batch])
    export_onnx(model, tmp_path / "m.onnx", "int8", list(batch), ExportOptions("torchscript"))
    with torch.no_grad(), OnnxRuntimeRunner(tmp_path / "m.onnx", "int8", threads=1) as runner:
        quantized = model(**batch).logits
        exported = runner.infer({key: tensor.numpy() for key, tensor in batch.items()})
        set_quantization(model, enabled=False)
        assert torch.equal(model(**batch).logits, original(**batch).logits)
        assert not torch.equal(quantized, original(**batch).logits)
    assert np.median(np.abs(exported - quantized.numpy())) < 1e-5


def test_three_layers_have_three_times_the_sites(tiny_model: Callable[..., Any]) -> None:
    sites = encoder_sites(tiny_model(num_hidden_layers=3))
    assert sum(site.layer is not None for site in sites) == 3 * len(IN_LAYERS)


def test_a_model_that_is_not_bert_like() -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=50, n_positions=16)
    model = GPT2ForSequenceClassification(config)
    for call in (encoder_sites, lambda model: insert_quantizers(model, LINEAR)):
        with pytest.raises(CheckpointError, match="not BERT-like; q8trt quantizes bert, roberta") as caught:
            call(model)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"^my/model is of type None"):
        architecture_of(object(), "my/model")


def test_a_quantizer_at_every_site(architecture: str, tiny_model: Callable[..., Any]) -> None:
    from modelopt.torch.quantization.nn import TensorQuantizer

    model = tiny_model(architecture)
    quantizers = insert_quantizers(model, ALL)
    assert list(quantizers) == [site.key for site in encoder_sites(model)]
    assert model_quantizers(model) == quantizers
    inside = [module for module in model.modules() if isinstance(module, TensorQuantizer)]
    assert len(inside) == len(encoder_sites(model))
    assert {id(quantizer) for quantizer in inside} == {id(quantizer) for quantizer in quantizers.values()}
    for key, quantizer in quantizers.items():
        assert quantizer.num_bits == 8
        assert quantizer.axis == (0 if key.endswith("weight") or key.startswith("embeddings") else None)
        assert not quantizer.unsigned
        assert not quantizer.narrow_range
        assert quantizer.amax is None


def test_a_recipe_of_few_sites_leaves_the_others(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    recipe = Recipe.from_dict({"name": "two", "weights": {"axis": 0}, "sites": {"gelu_out": {}, "key.weight": {}}})
    keys = ["layer.0.key.weight", "layer.0.gelu_out", "layer.1.key.weight", "layer.1.gelu_out"]
    assert list(insert_quantizers(model, recipe)) == keys
    attention = model.bert.encoder.layer[0].attention.self
    assert type(attention.key) is QuantLinear
    assert type(attention.query) is torch.nn.Linear


def test_parameters_keep_their_names_and_are_shared(architecture: str, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(architecture)
    before = dict(model.named_parameters())
    buffers = [name for name, _ in model.named_buffers()]
    insert_quantizers(model, ALL)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert [name for name, _ in model.named_buffers() if "_quantizer" not in name] == buffers


@pytest.mark.parametrize("pair", ["eager", "sdpa"], indirect=True)
def test_disabled_is_bit_equal(
    architecture: str, pair: tuple[Any, Any], tiny_batch: Callable[..., dict[str, torch.Tensor]]
) -> None:
    original, quantized = pair
    for shape in ((1, 8), (3, 17), (2, 64)):
        batch = tiny_batch(architecture, shape)
        with torch.no_grad():
            assert torch.equal(original(**batch).logits, quantized(**batch).logits)


def test_disabled_trains_bit_equal(
    architecture: str, pair: tuple[Any, Any], tiny_batch: Callable[..., dict[str, torch.Tensor]]
) -> None:
    batch = tiny_batch(architecture) | {"labels": torch.tensor([0.5, 4.0, 2.5])}
    start = copy.deepcopy(pair[0].state_dict())
    for model in pair:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model(**batch).loss.backward()
        optimizer.step()
    original, quantized = (dict(model.named_parameters()) for model in pair)
    moved = 0
    for name, parameter in original.items():
        assert torch.equal(parameter, quantized[name]), name
        moved += not torch.equal(parameter, start[name])
    assert moved == len(original)  # every parameter took part


def test_enabled_is_not_the_original(
    architecture: str,
    tiny_model: Callable[..., Any],
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., dict[str, torch.Tensor]],
) -> None:
    """The counterpart of the test above: calibrated quantizers do change logits, and switching them off undoes it."""
    original, batch = tiny_model(architecture), tiny_batch(architecture)
    quantized, _ = tiny_quantized(architecture)
    with torch.no_grad():
        reference, on = original(**batch).logits, quantized(**batch).logits
        set_quantization(quantized, enabled=False)
        off = quantized(**batch).logits
        set_quantization(quantized, enabled=True)
        again = quantized(**batch).logits
    assert not torch.equal(on, reference)
    assert torch.allclose(on, reference, atol=0.5)
    assert torch.equal(off, reference)
    assert torch.equal(again, on)


def test_q_k_v_share_one_input_quantizer(
    architecture: str,
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., dict[str, torch.Tensor]],
) -> None:
    """Called once a forward, and what it returns is the very tensor that all three projections read."""
    model, _ = tiny_quantized(architecture)
    entry = architecture_of(model.config)
    calls: dict[str, int] = {}
    for key, quantizer in model_quantizers(model).items():
        quantizer.register_forward_hook(lambda *_, key=key: calls.update({key: calls.get(key, 0) + 1}))
    outputs: list[torch.Tensor] = []
    last = layer_count(architecture) - 1
    quantizer = model_quantizers(model)[f"layer.{last}.qkv_input"]
    quantizer.register_forward_hook(lambda _, __, output: outputs.append(output))
    inputs: list[torch.Tensor] = []
    layer = model.base_model.get_submodule(f"{entry.layers}.{last}")
    for name in (entry.query, entry.key, entry.value):
        layer.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(**tiny_batch(architecture))
    runs = 2 // layer_count(architecture)
    assert calls == {key: runs if key.startswith("layer.") else 1 for key in model_quantizers(model)}
    assert len(inputs) == 3 * runs
    assert all(tensor is outputs[number // 3] for number, tensor in enumerate(inputs))


def test_inserting_twice(architecture: str, tiny_quantized: Callable[..., Any]) -> None:
    model, recipe = tiny_quantized(architecture)
    before = list(model.state_dict())
    with pytest.raises(QuantizationError, match="is already quantized; start from its floating-point checkpoint"):
        insert_quantizers(model, recipe)
    assert list(model.state_dict()) == before


def test_a_deep_copy_works_and_is_its_own(
    architecture: str,
    tiny_quantized: Callable[..., Any],
    tiny_batch: Callable[..., dict[str, torch.Tensor]],
) -> None:
    model, _ = tiny_quantized(architecture)
    copied = copy.deepcopy(model)
    batch = tiny_batch(architecture)
    with torch.no_grad():
        before = model(**batch).logits
        assert torch.equal(copied(**batch).logits, before)
        for quantizer in model_quantizers(copied).values():
            quantizer.amax = quantizer.amax * 4
        assert torch.equal(model(**batch).logits, before)
        assert not torch.equal(copied(**batch).logits, before)


def test_a_place_that_is_no_linear(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    model.bert.encoder.layer[1].output.dense = torch.nn.Identity()
    with pytest.raises(QuantizationError, match=r"^layer\.1\.gelu_out: .* is a Identity, which cannot have quant"):
        insert_quantizers(model, LINEAR)


def test_each_quantizer_off_by_itself_is_bit_equal_to_eager(
    architecture: str, tiny_model: Callable[..., Any], tiny_batch: Callable[..., dict[str, torch.Tensor]]
) -> None:
    """Without `set_quantization`: the attention function itself falls back to the model's eager attention."""
    original, quantized = (tiny_model(architecture, attn_implementation="eager") for _ in range(2))
    for quantizer in insert_quantizers(quantized, ALL).values():
        quantizer.disable()
    batch = tiny_batch(architecture)
    with torch.no_grad():
        assert torch.equal(original(**batch).logits, quantized(**batch).logits)


def test_attention_goes_back_to_what_it_was(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(attn_implementation="sdpa")
    insert_quantizers(model, ALL)
    for enabled, expected in ((False, "sdpa"), (False, "sdpa"), (True, ATTENTION), (True, ATTENTION), (False, "sdpa")):
        set_quantization(model, enabled)
        assert model.config._attn_implementation == expected
    linear = tiny_model(attn_implementation="sdpa")
    insert_quantizers(linear, LINEAR)  # no quantizer in the attention: it stays as it is
    assert linear.config._attn_implementation == "sdpa"


def test_a_layer_that_the_model_does_not_have(tiny_model: Callable[..., Any]) -> None:
    for sites in ({"layer.2.gelu_out": {}}, {"gelu_out": {"layers": [0, 2]}}):
        recipe = Recipe.from_dict({"name": "mine", "sites": sites})
        with pytest.raises(
            ConfigError, match=r"^recipe 'mine', site '.*': layer 2, but the model's layers are 0 to 1$"
        ):
            insert_quantizers(tiny_model(), recipe)


def test_a_recipe_that_finds_no_site(tiny_model: Callable[..., Any]) -> None:
    recipe = Recipe.from_dict({"name": "mine", "sites": {"embeddings.token_type": {}}})
    with pytest.raises(QuantizationError, match=r"^recipe 'mine' quantizes no site of this model"):
        insert_quantizers(tiny_model("distilbert"), recipe)


def test_layers_by_number_and_by_key(tiny_model: Callable[..., Any]) -> None:
    recipe = Recipe.from_dict(
        {
            "name": "mine",
            "sites": {
                "gelu_out": {"layers": [1]},
                "context": {},
                "layer.0.context": {"enabled": False},
                "layer.0.bmm_k": {},
            },
        }
    )
    keys = ["layer.0.bmm_k", "layer.1.context", "layer.1.gelu_out"]
    assert list(insert_quantizers(tiny_model(), recipe)) == keys


def test_weights_quantized_once_are_the_same(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model, batch, calls = tiny_model(), tiny_batch(), []
    quantizers = insert_quantizers(model, ALL)
    calibrate(model, ALL, [batch])
    with torch.no_grad():
        expected = model(**batch).logits
        quantizers["layer.0.key.weight"].register_forward_pre_hook(lambda *_: calls.append("weight"))
        quantizers["layer.0.context"].register_forward_pre_hook(lambda *_: calls.append("activation"))
        with weights_quantized_once(model):
            assert torch.equal(model(**batch).logits, expected)
            assert torch.equal(model(**batch).logits, expected)
            model.bert.encoder.layer[0].attention.self.key.weight.zero_()  # too late to be seen
            assert torch.equal(model(**batch).logits, expected)
        assert not torch.equal(model(**batch).logits, expected)  # and seen again afterwards
    assert calls.count("activation") == 4


def test_no_other_file_names_an_architecture() -> None:
    package = Path(__file__).parents[1] / "q8trt"
    names = {*ARCHITECTURES, *QUANTIZED_TYPES}
    for path in package.rglob("*.py"):
        if path.name != "architectures.py":
            constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
            assert not names.intersection(value for value in constants if isinstance(value, str)), path
