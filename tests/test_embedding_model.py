"""Embedding models: pooling against formulas by hand, folders of sentence-transformers, export at each precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import APART, ARCHITECTURES, make_batch, make_tokenizer
from embedding_fixtures import TEXTS, make_embedding_model, write_embedding_folder

from q8trt.errors import CheckpointError, ConfigError
from q8trt.models import load_tokenizer, read_head
from q8trt.models.checkpoints import load_embedding, load_quantized, save_checkpoint
from q8trt.models.embedding import Pooling
from q8trt.tasks.heads import POOLING_MODES, DenseLayer, Embedding, Head, HeadKind

DENSE = (DenseLayer(64, 12, activation="Tanh"), DenseLayer(12, 8, bias=False))


def pooled_by_hand(states: np.ndarray, mode: str) -> np.ndarray:
    """Pool the hidden states of one text without padding, (S, H)."""
    weights = np.arange(1, len(states) + 1)[:, None]
    return {
        "cls": lambda: states[0],
        "max": lambda: states.max(0),
        "mean": lambda: states.mean(0),
        "mean_sqrt_len_tokens": lambda: states.sum(0) / np.sqrt(len(states)),
        "weightedmean": lambda: (states * weights).sum(0) / weights.sum(),
    }[mode]()


def embed(model: Any, batch: dict[str, Any]) -> np.ndarray:
    with torch.inference_mode():
        return model(**batch).logits.numpy()


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_reads_the_tokens_alone(mode: str) -> None:
    states = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))
    lengths = (7, 4, 1)
    mask = torch.tensor([[1] * n + [0] * (7 - n) for n in lengths])
    pooled = Pooling((mode,))(states, mask).numpy()
    for row, length, vector in zip(states.numpy(), lengths, pooled, strict=True):
        np.testing.assert_allclose(vector, pooled_by_hand(row[:length].astype(np.float64), mode), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_row_without_tokens_gives_no_nan(mode: str) -> None:
    model = make_embedding_model(pooling=(mode,))
    ids = torch.full((1, 5), 7)
    assert np.isfinite(embed(model, {"input_ids": ids, "attention_mask": torch.zeros_like(ids)})).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_the_encoder_and_its_steps(architecture: str) -> None:
    model = make_embedding_model(architecture, pooling=("cls", "mean"), dense=DENSE)
    batch = make_batch(architecture)
    with torch.inference_mode():
        states = model.base_model(**batch).last_hidden_state.numpy()
    first, second = (module for module in model.dense if hasattr(module, "weight"))
    for row, mask, vector in zip(states, batch["attention_mask"].numpy(), embed(model, batch), strict=True):
        tokens = row[: mask.sum()]
        pooled = np.concatenate([tokens[0], tokens.mean(0)])
        hidden = np.tanh(first.weight.detach().numpy() @ pooled + first.bias.detach().numpy())
        expected = second.weight.detach().numpy() @ hidden
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "steps", [{}, {"pooling": ("max", "cls"), "normalize": False}, {"pooling": ("cls", "mean"), "dense": DENSE}]
)
def test_a_folder_is_read_as_it_was_written(steps: dict[str, Any], tmp_path: Path) -> None:
    steps["prompts"], steps["default_prompt_name"] = {"query": "query: "}, "query"
    folder = write_embedding_folder(tmp_path / "model", **steps)
    model, head = make_embedding_model(**steps), read_head(str(folder))
    assert head == Head(HeadKind.EMBEDDING, max_length=32, embedding=model.embedding)
    assert head.embedding
    again = load_embedding(folder, head.embedding, head.max_length)
    np.testing.assert_array_equal(embed(again, make_batch()), embed(model, make_batch()))


@pytest.mark.parametrize("steps", [{"pooling": ("weightedmean",)}, {"pooling": ("cls", "mean"), "dense": DENSE}])
def test_sentence_transformers_opens_the_folder(steps: dict[str, Any], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    steps["prompts"] = {"query": "find : "}
    folder = write_embedding_folder(tmp_path / "model", **steps)
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS), prompt_name="query")
    inputs = make_tokenizer()([f"find : {text}" for text in TEXTS], padding=True, return_tensors="pt")
    np.testing.assert_allclose(theirs, embed(make_embedding_model(**steps), dict(inputs)), atol=1e-5)


def test_a_folder_of_todays_sentence_transformers_is_read(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = write_embedding_folder(tmp_path / "model", pooling=("cls", "mean"), dense=DENSE)
    library.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    head = read_head(str(tmp_path / "saved"))
    assert head.embedding == Embedding(8, ("cls", "mean"), DENSE, True, {"query": "", "document": ""})
    again = load_embedding(tmp_path / "saved", head.embedding)
    expected = make_embedding_model(pooling=("cls", "mean"), dense=DENSE)
    np.testing.assert_allclose(embed(again, make_batch()), embed(expected, make_batch()), atol=1e-6)


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_pooling(folder: Path) -> None:
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))


def add_module(kind: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        path = folder / "modules.json"
        entries = json.loads(path.read_text())
        path.write_text(json.dumps([*entries, {"idx": 9, "name": "9", "path": "9", "type": kind}]))

    return add


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: change(f, "1_Pooling/config.json", pooling_mode="lasttoken"), "the pooling 'lasttoken'; q8trt supports"),
        (lambda f: change(f, "1_Pooling/config.json", pooling_mode_lasttoken=True), "the pooling 'lasttoken'; q8trt supports"),
        (lambda f: change(f, "1_Pooling/config.json", include_prompt=False), "excludes prompts from the pooling"),
        (lambda f: change(f, "1_Pooling/config.json", word_embedding_dimension=99), "is 99, but the encoder's hidden"),
        (lambda f: change(f, "2_Dense/config.json", in_features=65), "has 65 inputs, and the pooling gives 64 features"),
        (lambda f: change(f, "2_Dense/config.json", out_features=13), "has 12 inputs and follows one with 13 outputs"),
        (lambda f: change(f, "2_Dense/config.json", out_features="x"), "in_features and out_features are [64, 'x']"),
        (lambda f: change(f, "2_Dense/config.json", activation_function="os.system"), "has the activation 'system'"),
        (lambda f: change(f, "2_Dense/config.json", use_residual=True), "with a residual"),
        (lambda f: (f / "modules.json").write_text("[1]"), "modules.json is damaged: expected a list of modules"),
        (lambda f: (f / "modules.json").write_text("{"), "modules.json is damaged"),
        (lambda f: (f / "1_Pooling" / "config.json").unlink(), "cannot be read"),
        (drop_pooling, "has no Pooling; give it"),
        (add_module("evil.Module"), "'evil.Module', Python code that q8trt does not run"),
        (add_module("sentence_transformers.models.LSTM"), "has the module LSTM; expected"),
        (lambda f: change(f, "sentence_bert_config.json", max_seq_length=0), "max_seq_length is 0"),
        (lambda f: change(f, "config_sentence_transformers.json", default_prompt_name="x"), "'x' is not among the prompts"),
        (lambda f: change(f, "config_sentence_transformers.json", truncate_dim=4), "cuts embeddings to 4 features"),
        (
            lambda f: change(f, "sentence_bert_config.json", processing_kwargs={"text": {"max_length": 8}}),
            "sentence_bert_config.json has processing_kwargs, which changes the tokens",
        ),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_is_one_line(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path / "model", pooling=("cls", "mean"), dense=DENSE)
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        read_head(str(folder))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dense_layer_of_another_shape_is_one_line(tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path / "model", pooling=("cls", "mean"), dense=DENSE)
    (folder / "2_Dense" / "model.safetensors").write_bytes((folder / "3_Dense" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="has no layer of the shape 12x64"):
        load_embedding(folder, read_head(str(folder)).embedding)  # type: ignore[arg-type]


def test_texts_in_lower_case_need_a_tokenizer_that_makes_them(tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path / "model")
    change(folder, "sentence_bert_config.json", do_lower_case=True)
    load_tokenizer(str(folder))
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(CheckpointError, match="lowercases texts before its tokenizer"):
        load_tokenizer(str(folder))


def test_the_length_is_read_under_its_earlier_names(tmp_path: Path) -> None:
    """sentence-transformers reads them too, so texts are cut as there."""
    folder = write_embedding_folder(tmp_path / "model", "roberta")
    change(folder, "sentence_bert_config.json", max_seq_length=12, do_lower_case=True)
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    assert read_head(str(folder)).max_length == 12
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(CheckpointError, match="lowercases texts before its tokenizer"):
        load_tokenizer(str(folder))


def test_heads_of_folders_without_modules(tiny_checkpoint_of: Any, tmp_path: Path) -> None:
    assert read_head(str(tiny_checkpoint_of())) == Head(HeadKind.REGRESSION)
    assert read_head(str(tiny_checkpoint_of(num_labels=3))).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    folder = write_embedding_folder(tmp_path / "model")
    (folder / "modules.json").unlink()
    with pytest.raises(CheckpointError, match="--head embedding --pooling mean"):
        read_head(str(folder))
    with pytest.raises(ConfigError, match="does not define its pooling"):
        read_head(str(folder), HeadKind.EMBEDDING)
    head = read_head(str(folder), HeadKind.EMBEDDING, ("mean", "max"))
    assert head.embedding == Embedding(64, ("mean", "max"))
    with pytest.raises(ConfigError, match="pooling 'lasttoken' is unknown"):
        read_head(str(folder), HeadKind.EMBEDDING, ("lasttoken",))
    with pytest.raises(CheckpointError, match="has no regression head"):
        read_head(str(folder), HeadKind.REGRESSION)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "a", "1": "a"}}, "has the label 'a' twice"),
        ({"id2label": {"0": "a", "1": " "}}, "the output 1 has no name that can be printed"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must name all outputs"),
        ({"architectures": ["BertForMultipleChoice"]}, "a head for multiple choice; q8trt supports"),
        ({"architectures": ["BertForMaskedLM"]}, "has no head"),
    ],
)
def test_a_head_that_cannot_be_used_is_one_line(
    changes: dict[str, Any], message: str, tiny_checkpoint_of: Any, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_checkpoint_of(num_labels=2), tmp_path / "model"))
    change(folder, "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_head(str(folder))


def quantized(architecture: str = "bert", recipe: str = "full", **steps: Any) -> tuple[Any, Any]:
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    model, chosen = make_embedding_model(architecture, **steps), load_recipe(recipe)
    insert_quantizers(model, chosen)
    calibrate(model, chosen, [make_batch(architecture, seed=seed) for seed in range(3)])
    return model, chosen


def test_a_quantized_model_is_read_as_it_was_saved(tmp_path: Path) -> None:
    model, recipe = quantized(pooling=("cls", "mean"), dense=DENSE)
    save_checkpoint(tmp_path / "model", model, make_tokenizer(), recipe)
    again, _ = load_quantized(tmp_path / "model")
    np.testing.assert_array_equal(embed(again, make_batch()), embed(model, make_batch()))


def test_quantizers_off_are_the_float_model() -> None:
    from q8trt.quantization.insertion import set_quantization

    model, _ = quantized(recipe="linear")
    before = embed(model, make_batch())
    set_quantization(model, False)
    np.testing.assert_array_equal(embed(model, make_batch()), embed(make_embedding_model(), make_batch()))
    assert not np.array_equal(before, embed(model, make_batch()))


def run_onnx(path: Path, batch: dict[str, Any]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: array.numpy().astype(np.int32) for name, array in batch.items()})[0]


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta", "electra", "albert", *APART])
def test_the_exported_file_embeds_as_the_model_does(architecture: str, tmp_path: Path) -> None:
    from q8trt.export.onnx import export_onnx

    batch = make_batch(architecture)
    names = tuple(batch)
    for precision, (model, _) in {
        "fp32": (make_embedding_model(architecture), None),
        "int8": quantized(architecture),
    }.items():
        export_onnx(model, tmp_path / "model.onnx", precision, names)
        assert np.abs(run_onnx(tmp_path / "model.onnx", batch) - embed(model, batch)).max() < 2e-5


@pytest.mark.parametrize("pooling", [("mean",), ("cls", "weightedmean"), ("max", "mean_sqrt_len_tokens")])
def test_each_pooling_is_exported_and_stays_in_fp32(pooling: tuple[str, ...], tmp_path: Path) -> None:
    import onnx

    from q8trt.export.onnx import export_onnx
    from q8trt.export.options import ExportOptions

    dense = (DenseLayer(32 * len(pooling), 8, activation="Tanh"),)
    model, batch = make_embedding_model(pooling=pooling, dense=dense), make_batch()
    names = tuple(batch)
    for exporter in ("dynamo", "torchscript"):
        exported = export_onnx(model, tmp_path / f"{exporter}.onnx", "fp16", names, ExportOptions(exporter=exporter))
        assert np.abs(run_onnx(exported.path, batch) - embed(model, batch)).max() < 5e-3
        kept = {op.name for op in exported.kept_fp32}
        graph = onnx.load(exported.path).graph
        after = [node.name for node in graph.node if node.name.startswith(("pooling/", "dense.", "normalize/"))]
        assert {name for name in after if "Cast" not in name} <= kept
        assert any(name.startswith("normalize/") for name in kept)
        halves = {each.name for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT16}
        assert not [name for name in halves if name.startswith("dense.")]
    assert (tmp_path / "dynamo.onnx").read_bytes() == (tmp_path / "torchscript.onnx").read_bytes()
