"""Checkpoints of pytorch-quantization and QDQBERT -> our sites, against a forward pass that reads their names."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_batch, make_model, make_tokenizer
from torch.nn import functional

from q8trt.errors import CheckpointError, ConfigError, QuantizationError
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.migration import import_checkpoint, read_amax, read_config, read_state, recipe_of
from q8trt.quantization.recipe import Recipe

State = dict[str, torch.Tensor]
LAYER = "bert.encoder.layer.{}."
LINEARS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
           "intermediate.dense", "output.dense")  # fmt: skip
#: What QDQBERT's layer calls its quantizers beside those of its linears.
OTHERS = (
    *(f"attention.self.matmul_{tensor}_input_quantizer" for tensor in "qkva"),
    *(f"{module}.add_{side}_input_quantizer" for module in ("attention.output", "output") for side in ("local", "residual")),
)  # fmt: skip


def reference_logits(
    state: State, batch: dict[str, torch.Tensor], observed: dict[str, float] | None = None
) -> torch.Tensor:
    """Return the logits of QDQBertForSequenceClassification (2 layers, 2 heads) with this state dict.

    A quantizer whose `_amax` the state lacks lets its tensor through; `observed` collects the largest magnitudes.
    """

    def fake(x: torch.Tensor, name: str) -> torch.Tensor:
        if observed is not None:
            observed[name] = max(float(x.abs().max()), observed.get(name, 0.0))
        if f"{name}._amax" not in state:
            return x
        scale = torch.tensor(127.0) / state[f"{name}._amax"].float()  # 127 / tensor rounds twice
        return ((x.float() * scale).round().clamp(-128, 127) / scale).to(x.dtype)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = fake(state[f"{name}.weight"], f"{name}._weight_quantizer")
        return functional.linear(fake(x, f"{name}._input_quantizer"), weight, state[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def add(branch: torch.Tensor, skip: torch.Tensor, name: str) -> torch.Tensor:
        total = fake(branch, f"{name}.add_local_input_quantizer") + fake(skip, f"{name}.add_residual_input_quantizer")
        return norm(total, f"{name}.LayerNorm")

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], 2, -1).transpose(1, 2)

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        q, k, v = (heads(linear(x, f"{name}.{part}")) for part in ("query", "key", "value"))
        product = fake(q, f"{name}.matmul_q_input_quantizer") @ fake(k.mT, f"{name}.matmul_k_input_quantizer")
        scores = product / q.shape[-1] ** 0.5 + (1 - batch["attention_mask"])[:, None, None] * -1e9
        probabilities = fake(scores.softmax(-1), f"{name}.matmul_a_input_quantizer")
        return (probabilities @ fake(v, f"{name}.matmul_v_input_quantizer")).transpose(1, 2).flatten(2)

    table = "bert.embeddings.{}_embeddings.weight"
    x = state[table.format("word")][batch["input_ids"]] + state[table.format("token_type")][batch["token_type_ids"]]
    x = norm(x + state[table.format("position")][: x.shape[1]], "bert.embeddings.LayerNorm")
    for number in range(2):
        layer = LAYER.format(number)
        attended = linear(attention(x, f"{layer}attention.self"), f"{layer}attention.output.dense")
        x = add(attended, x, f"{layer}attention.output")
        inner = functional.gelu(linear(x, f"{layer}intermediate.dense"))
        x = add(linear(inner, f"{layer}output.dense"), x, f"{layer}output")
    return linear(linear(x[:, 0], "bert.pooler.dense").tanh(), "classifier")


def names_of(*, everything: bool) -> list[str]:
    """Quantizers of QDQBERT, or of a BERT that was built after quant_modules.initialize()."""
    linears = [LAYER.format(number) + linear for number in range(2) for linear in LINEARS]
    linears += [] if everything else ["bert.pooler.dense", "classifier"]
    names = [f"{linear}._{kind}_quantizer" for linear in linears for kind in ("input", "weight")]
    return names + [LAYER.format(number) + other for number in range(2) for other in OTHERS if everything]


def quantized_state(names: list[str], *, per_channel: bool = True, **overrides: Any) -> State:
    """State dict of a random BERT with an amax for each of `names`: nine tenths of what three batches reach."""
    state = dict(make_model(**overrides).state_dict())
    observed: dict[str, float] = {}
    for seed in range(3):
        reference_logits(state, make_batch(seed=seed), observed)
    for name in names:
        state[f"{name}._amax"] = torch.tensor(0.9 * observed[name])
        if per_channel and name.endswith("_weight_quantizer"):
            weight = state[name.replace("_weight_quantizer", "weight")]
            state[f"{name}._amax"] = 0.9 * weight.abs().amax(1, keepdim=True)
    return state


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[State], Path]:
    """Write a state dict as model.safetensors into a folder with a QDQBERT's config.json."""
    from safetensors.torch import save_file

    def write(state: State) -> Path:
        save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
        config = make_model().config.to_dict() | {"model_type": "qdqbert", "architectures": ["QDQBertModel"]}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize("everything", [True, False], ids=["QDQBERT", "quant_modules.initialize"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_imported_model_computes_what_theirs_does(
    everything: bool, per_channel: bool, saved: Callable[[State], Path]
) -> None:
    names = names_of(everything=everything)
    state = quantized_state(names, per_channel=per_channel)
    model, _, _ = import_checkpoint(saved(state))
    quantizers = model_quantizers(model)
    assert len(quantizers) == len(names) - 4, "Q, K and V share an input quantizer in each of two layers"
    # In float64 all but the quantizers: sums in another order would else tip a value that lies between two integers.
    model, state = model.double(), {name: tensor.double() for name, tensor in state.items()}
    for seed in range(3, 6):
        batch = make_batch(seed=seed)
        expected = reference_logits(state, batch)
        with torch.no_grad():
            torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-9)
        floating = {name: tensor for name, tensor in state.items() if "_quantizer." not in name}
        assert (reference_logits(floating, batch) - expected).abs().max() > 1e-2, "quantization must have shown"


def test_recipe_of_a_full_checkpoint() -> None:
    model = make_model()
    amax, _ = read_amax(quantized_state(names_of(everything=True)), model)
    recipe = recipe_of(amax, model, "mine")
    assert recipe.name == "mine"
    assert "pooler.input" not in recipe.sites
    assert "embeddings.word" not in recipe.sites
    assert len(recipe.sites) == 18
    assert {name for name, spec in recipe.sites.items() if spec.axis == 0} == {
        f"{name}.weight" for name in ("query", "key", "value", "attention_output", "ffn_intermediate", "ffn_output")
    }
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_every_name_of_qdqbert_reaches_its_site() -> None:
    names = names_of(everything=True)
    state = dict(make_model().state_dict())
    state |= {f"{name}._amax": torch.tensor(float(number + 1)) for number, name in enumerate(names)}
    amax, _ = read_amax(state, make_model())
    layer = LAYER.format(1)
    for key, name in {
        "qkv_input": "attention.self.value._input_quantizer",  # the last, so the largest, of the three
        "key.weight": "attention.self.key._weight_quantizer",
        "bmm_k": "attention.self.matmul_k_input_quantizer",
        "softmax_out": "attention.self.matmul_a_input_quantizer",
        "bmm_v": "attention.self.matmul_v_input_quantizer",
        "context": "attention.output.dense._input_quantizer",
        "attention_output.weight": "attention.output.dense._weight_quantizer",
        "attention_residual.branch": "attention.output.add_local_input_quantizer",
        "attention_residual.skip": "attention.output.add_residual_input_quantizer",
        "ffn_input": "intermediate.dense._input_quantizer",
        "gelu_out": "output.dense._input_quantizer",
        "ffn_residual.branch": "output.add_local_input_quantizer",
        "ffn_residual.skip": "output.add_residual_input_quantizer",
    }.items():
        assert amax[f"layer.1.{key}"] == names.index(layer + name) + 1, key
    # 32 / 2 heads = 16: what was quantized before the division by 4 is quantized after it.
    assert amax["layer.1.bmm_q"] == (names.index(f"{layer}attention.self.matmul_q_input_quantizer") + 1) / 4
    assert all(tensor.dtype == torch.float32 and tensor.shape == () for tensor in amax.values())


@pytest.mark.parametrize(
    ("architecture", "prefix", "query", "out"),
    [
        ("roberta", "roberta.encoder.layer.0.", "attention.self.{}", "output.dense"),
        ("electra", "electra.encoder.layer.0.", "attention.self.{}", "output.dense"),
        ("distilbert", "distilbert.transformer.layer.0.", "attention.{}_lin", "ffn.lin2"),
        ("mpnet", "mpnet.encoder.layer.0.", "attention.attn.{}", "output.dense"),
    ],
)
def test_linears_of_the_other_architectures(architecture: str, prefix: str, query: str, out: str) -> None:
    parts = ("q", "k", "v") if architecture in ("distilbert", "mpnet") else ("query", "key", "value")
    names = [f"{prefix}{query.format(part)}._input_quantizer" for part in parts] + [f"{prefix}{out}._input_quantizer"]
    amax, _ = read_amax({f"{name}._amax": torch.tensor(2.0) for name in names}, make_model(architecture))
    assert list(amax) == ["layer.0.qkv_input", "layer.0.gelu_out"]


def test_q_k_and_v_share_the_largest_of_their_ranges() -> None:
    names = [f"{LAYER.format(0)}attention.self.{part}._input_quantizer._amax" for part in ("query", "key", "value")]
    state = dict(zip(names, torch.tensor([1.5, 4.0, 2.0]), strict=True))
    amax, notes = read_amax(state, make_model())
    assert amax == {"layer.0.qkv_input": 4.0}
    assert "layer.0.qkv_input: Q, K and V had input ranges 1.5, 4, 2; they share the largest" in notes
    _, notes = read_amax({name: torch.tensor(3.0) for name in names}, make_model())
    assert not any("share the largest" in note for note in notes)


def test_notes_say_what_was_changed_and_assumed() -> None:
    _, notes = read_amax(quantized_state(names_of(everything=True)), make_model())
    assert [note.partition(":")[0].partition(",")[0] for note in notes] == [
        "bmm_q",
        "in floating point in some or all layers",
        "assumed to be 8 bits",
    ]
    assert "divided by sqrt(16)" in notes[0]
    assert notes[1].endswith("embeddings.token_type, pooler.input, pooler.weight, classifier.input, classifier.weight")


def test_sites_of_some_layers_and_mixed_granularity() -> None:
    state = {f"{LAYER.format(1)}output.dense._input_quantizer._amax": torch.tensor(2.0)}
    for number, shape in enumerate([(64, 1), ()]):
        state[f"{LAYER.format(number)}intermediate.dense._weight_quantizer._amax"] = torch.ones(shape)
    model = make_model()
    amax, _ = read_amax(state, model)
    recipe = recipe_of(amax, model, "mine")
    assert recipe.sites["gelu_out"].layers == (1,)
    assert recipe.sites["layer.0.ffn_intermediate.weight"].axis == 0
    assert recipe.sites["layer.1.ffn_intermediate.weight"].axis is None
    assert len(recipe.sites) == 3


def test_leave_out_keeps_sites_in_float() -> None:
    state, model = quantized_state(names_of(everything=True)), make_model()
    everything, _ = read_amax(state, model)
    rest, notes = read_amax(state, model, leave_out=("ffn_residual", "bmm_k", "layer.1.gelu_out"))
    assert set(everything) - set(rest) == {
        *(f"layer.{number}.{name}" for number in range(2) for name in ("ffn_residual.branch", "ffn_residual.skip", "bmm_k")),
        "layer.1.gelu_out",
    }  # fmt: skip
    assert "bmm_k, ffn_residual.branch, ffn_residual.skip, gelu_out, pooler.input" in next(
        note for note in notes if note.startswith("in floating point")
    )
    with pytest.raises(ConfigError, match=r"cannot leave out 'gelu': unknown site .did you mean 'gelu_out'.."):
        read_amax(state, model, leave_out=("gelu",))


def test_unknown_quantizers_are_refused_or_named() -> None:
    state = quantized_state(names_of(everything=True))
    extra = f"{LAYER.format(0)}attention.output.dense._aftergemm_quantizer._amax"
    state[extra] = torch.tensor(127.0)
    with pytest.raises(QuantizationError, match=f"^1 ranges belong to no site of q8trt: {re.escape(extra)};"):
        read_amax(state, make_model())
    _, notes = read_amax(state, make_model(), strict=False)
    assert f"ignored, because they belong to no site: {extra}" in notes


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("buffer", ["_pre_quant_scale", "clip.clip_value_max"])
def test_what_changes_the_computation_is_not_dropped(strict: bool, buffer: str) -> None:
    name = f"{LAYER.format(0)}output.dense._input_quantizer.{buffer}"
    with pytest.raises(QuantizationError, match=f"^{re.escape(name)} changes what the model computes"):
        read_amax(quantized_state(names_of(everything=True)) | {name: torch.ones(64)}, make_model(), strict=strict)


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ({}, "the state dict has no _amax for a site of q8trt; calibrate the model, then save it"),
        (
            {"attention.self.query._input_quantizer": torch.tensor(1.0)},
            r"layer\.0\.qkv_input: .*query\._input_quantizer\._amax exists, .*key\._input_quantizer\._amax does not; Q, K",
        ),
        (
            {"output.dense._input_quantizer": torch.ones(64)},
            r"layer\.0\.gelu_out: .*output\.dense\._input_quantizer\._amax has shape \(64,\), expected one value$",
        ),
        (
            {"output.dense._weight_quantizer": torch.ones(64, 1)},
            r"layer\.0\.ffn_output\.weight: .* has shape \(64, 1\), expected one value or shape \(32, 1\)$",
        ),
    ],
)
def test_what_cannot_be_mapped(buffers: State, message: str) -> None:
    state = {f"{LAYER.format(0)}{name}._amax": amax for name, amax in buffers.items()}
    with pytest.raises(QuantizationError, match=message):
        read_amax(state, make_model())


def test_a_range_that_is_no_range(saved: Callable[[State], Path]) -> None:
    state = quantized_state(names_of(everything=True))
    state[f"{LAYER.format(1)}output.dense._input_quantizer._amax"] = torch.tensor(float("nan"))
    with pytest.raises(QuantizationError, match=r"^layer\.1\.gelu_out: amax is not finite"):
        import_checkpoint(saved(state))


def test_weights_that_do_not_fit(saved: Callable[[State], Path]) -> None:
    state = quantized_state(names_of(everything=True))
    state["bert.embeddings.position_ids"] = torch.arange(64)  # older transformers saved it
    import_checkpoint(saved(state))
    with pytest.raises(CheckpointError, match=r"^the weights do not fit the model: .*classifier\.weight"):
        import_checkpoint(saved(state), make_model(num_labels=3))
    del state["classifier.bias"]
    with pytest.raises(CheckpointError, match=r"^the weights do not fit the model: .*Missing key.*classifier\.bias"):
        import_checkpoint(saved(state))


def test_the_imported_model_is_a_checkpoint_like_any_other(saved: Callable[[State], Path], tmp_path: Path) -> None:
    from q8trt.models.checkpoints import load_quantized, save_checkpoint

    model, recipe, _ = import_checkpoint(saved(quantized_state(names_of(everything=True))))
    save_checkpoint(tmp_path / "ours", model, make_tokenizer(), recipe)
    again, read = load_quantized(tmp_path / "ours")
    assert read == recipe
    batch = make_batch()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("nested", [None, "state_dict", "model_state_dict", "model"])
def test_pickles_only_when_allowed(nested: str | None, tmp_path: Path) -> None:
    state = {"module.classifier.weight": torch.ones(1, 2), "epoch": 3}
    path = tmp_path / "pytorch_model.bin"
    torch.save(state if nested is None else {nested: state, "step": 7}, path)
    with pytest.raises(CheckpointError, match=r"is a pickle, .*; allow it with --allow_pickle"):
        read_state(tmp_path)
    read = read_state(tmp_path, allow_pickle=True)
    assert list(read) == ["classifier.weight"]
    assert torch.equal(read["classifier.weight"], torch.ones(1, 2))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_runs_no_code_even_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"weight": Evil(tmp_path / "ran")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read: "):
        read_state(path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        read_state(tmp_path)
    with pytest.raises(CheckpointError, match=r"absent does not exist; give a folder or file of pytorch-quantization"):
        read_state(tmp_path / "absent")
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: "):
        read_state(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt has no state dict; expected names and tensors"):
        read_state(tmp_path / "model.pt", allow_pickle=True)


def test_config_of_a_qdqbert_folder(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as a transformers configuration"):
        read_config(tmp_path)
    path.write_text(
        json.dumps({"model_type": "qdqbert", "hidden_size": 48, "id2label": {"0": "a", "1": "b", "2": "c"}})
    )
    config = read_config(tmp_path)
    assert (config.model_type, config.hidden_size, config.num_labels) == ("bert", 48, 3)
    for text in ("[]", "{}", '{"model_type": "no such"}', "{"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read as a transformers configuration"):
            read_config(tmp_path)
    path.write_text('{"model_type": "gpt2"}')
    with pytest.raises(CheckpointError, match="is of type 'gpt2', a decoder that generates text, not BERT-like"):
        read_config(tmp_path)
