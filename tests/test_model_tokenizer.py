"""Tokenizers: damaged files are refused in one line, and the model decides which inputs it takes and how long they are."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import write_sts_b
from tokenizers import Tokenizer

from q8trt import files
from q8trt.cli.main import run_command
from q8trt.errors import CheckpointError
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.models import checkpoints, load_tokenizer, model_inputs, tokenizer
from q8trt.models.checkpoints import save_checkpoint
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.training_config import TrainingConfig
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner
from q8trt.runtime.torch_runner import TorchRunner
from q8trt.tasks.data import DataConfig, bucketed_batches, tokenize
from q8trt.tasks.glue import get_task
from q8trt.training.finetuning import load_inputs

STSB = get_task("STS-B")


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def change(path: Path, edit: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def refusal(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of the error; a library that panics prints nothing beside it."""
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)
    assert "panicked" not in "".join(capfd.readouterr())
    return str(caught.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda data: data.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "its reader failed"),
        (lambda data: data.update(normalizer={"type": "Replace", "pattern": {"Regex": "(("}, "content": "x"}), "cannot be read"),
        (lambda data: data["post_processor"].update(special_tokens={}), "cannot encode a text: its reader failed"),
        (lambda data: data["model"].update(vocab={}), "the tokenizer "),
        (lambda data: data["model"].update(vocab={"a": "x"}), "cannot be read"),
        (lambda data: data.update(model=None), "cannot be read"),
        (lambda data: data["model"]["vocab"].update(zebra=99_999), "1 tokens of the tokenizer have ids beyond the model's"),
        (lambda data: data["post_processor"]["special_tokens"]["[CLS]"].update(ids=[10**9]), "ids beyond the model's token"),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_damaged_tokenizer(
    folder: Path, edit: Callable[[Any], object], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change(folder / "tokenizer.json", edit)
    assert words in refusal(folder, capfd)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
                         ids=range(7))  # fmt: skip
def test_files_that_are_no_json_objects(
    folder: Path, name: str, text: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_bytes(text)
    assert str(folder) in refusal(folder, capfd)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "its own Python code (auto_map in tokenizer_config.json)"),
        ({"pad_token": None}, "no padding token"),
        ({"split_special_tokens": True}, "splits special tokens in texts"),
        ({"model_max_length": "x"}, "model_max_length is 'x'"),
        ({"model_max_length": -1}, "model_max_length is -1"),
    ],
)
def test_settings_that_q8trt_cannot_use(
    folder: Path, keys: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change(folder / "tokenizer_config.json", lambda data: data.update(keys))
    assert words in refusal(folder, capfd)


def test_transformers_does_not_read_the_configuration_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedConfig

    monkeypatch.setattr(PreTrainedConfig, "get_config_dict", lambda *_, **__: pytest.fail("it is read without limits"))
    change(folder / "config.json", lambda data: data.update(num_labels=10**9))
    load_tokenizer(str(folder))
    checkpoints.load_finetuned(folder, STSB)


def test_a_tokenizer_that_exists_as_a_slow_one_only(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    message = refusal(folder, capfd)
    assert "slow" in message
    assert "tokenizer.json" in message


def test_tokens_added_without_resizing_the_table(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["zebra", "okapi"])
    save_checkpoint(tmp_path / "model", tiny_model(), tokenizer)
    rows = len(tiny_tokenizer)
    message = refusal(tmp_path / "model", capfd)
    assert f"2 tokens of the tokenizer have ids beyond the model's token table of {rows} rows" in message
    assert f"the highest is {rows + 1}" in message
    assert "resize_token_embeddings" in message


@pytest.mark.parametrize(("length", "expected"), [(None, 64), (10**30, 64), (512, 64), (64, 64), (40, 40)])
def test_the_position_table_bounds_the_length(folder: Path, length: int | None, expected: int) -> None:
    def edit(data: Any) -> None:
        data.pop("model_max_length", None)
        if length is not None:
            data["model_max_length"] = length

    change(folder / "tokenizer_config.json", edit)
    assert load_tokenizer(str(folder)).model_max_length == expected


@pytest.mark.parametrize(
    ("architecture", "types", "tokenizer_makes", "taken"),
    [
        ("bert", 2, True, True),
        ("bert", 2, False, False),  # multilingual MiniLM, e5: a BERT with XLM-R's tokenizer
        ("bert", 1, True, False),
        ("roberta", 1, True, False),  # a RoBERTa with BERT's tokenizer
        ("roberta", 2, True, True),
        ("electra", 2, True, True),
        ("distilbert", 0, True, False),
        ("mpnet", 0, True, False),
    ],
)
def test_one_place_decides_on_token_types(
    architecture: str, types: int, tokenizer_makes: bool, taken: bool, tmp_path: Path, tiny_model: Any
) -> None:
    """Training, torch's scores, the exported graph and the engine folder's tokenizer all follow it."""
    from conftest import make_tokenizer

    keys = {"type_vocab_size": types} if types else {}
    save_checkpoint(tmp_path / "model", tiny_model(architecture, **keys), make_tokenizer(tokenizer_makes))
    write_sts_b(tmp_path / "data", 8, 4)
    data = DataConfig("STS-B", data_dir=str(tmp_path / "data"), max_seq_length=32)
    inputs = load_inputs(FinetuneConfig(data, TrainingConfig(), from_fp32=str(tmp_path / "model")))
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if taken else []))
    assert model_inputs(inputs.tokenizer) == names
    assert (inputs.train.token_type_ids is not None) == taken
    inputs.tokenizer.save_pretrained(tmp_path / "engine")
    assert model_inputs(load_tokenizer(str(tmp_path / "engine"))) == names
    model = checkpoints.load_finetuned(tmp_path / "model", STSB)
    export_onnx(model, tmp_path / "model.onnx", "fp32", names, ExportOptions("torchscript"))
    batch = next(iter(bucketed_batches(inputs.train, 8, inputs.tokenizer.pad_token_id)))
    with TorchRunner(model, "fp32") as torch_runner, OnnxRuntimeRunner(tmp_path / "model.onnx", "fp32") as runner:
        assert runner.input_names == names
        np.testing.assert_allclose(runner.infer(batch.arrays), torch_runner.infer(batch.arrays), atol=1e-5)


def test_token_types_of_a_file_are_dropped_where_the_model_takes_none(
    tmp_path: Path, tiny_checkpoint_of: Callable[..., Path]
) -> None:
    from q8trt.tasks.data import Features

    rows = Features(
        task=STSB, split="train", source="x", input_ids=[[2, 7, 3]], token_type_ids=[[0, 1, 1]], labels=None
    )
    assert tokenize(rows, load_tokenizer(str(tiny_checkpoint_of("roberta"))), 8).token_type_ids is None
    assert tokenize(rows, load_tokenizer(str(tiny_checkpoint_of("bert"))), 8) is rows


def test_a_bert_without_token_types_goes_the_whole_way(
    tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration, and the teacher of QAT."""
    from conftest import make_tokenizer

    from q8trt.training import stage as training

    stages: list[Any] = []
    result = training.StageResult(0, 0, 0, 0)
    monkeypatch.setattr(training, "train_stage", lambda stage, *_: stages.append(stage) or result)
    save_checkpoint(tmp_path / "model", tiny_model("bert"), make_tokenizer(False))
    write_sts_b(tmp_path / "data", 16, 8)
    options = ["--task", "STS-B", "--data_dir", str(tmp_path / "data"), "--max_seq_length", "32"]
    model = ["--from_fp32", str(tmp_path / "model"), "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    assert run_command("finetune", [*options, *model]) == 0
    assert stages[0].distillation.token_types is False


def test_a_panic_is_an_error_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer

    broken = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    text = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": broken})
    with pytest.raises(files.MalformedError, match="its reader failed: Precompiled"), files.no_panic():
        Tokenizer.from_str(text)
    assert "panicked" not in capfd.readouterr().err


def test_other_errors_pass_a_panics_guard(capfd: pytest.CaptureFixture[str]) -> None:
    import sys

    with pytest.raises(KeyboardInterrupt), files.no_panic():
        raise KeyboardInterrupt
    with files.no_panic():
        torch.ones(1)
    print("still there", file=sys.stderr)
    assert capfd.readouterr().err == "still there\n"


#: The files of sentencepiece that checkpoints of an architecture have.
PIECES = {"deberta-v2": "spm.model", "albert": "spiece.model", "xlm-roberta": "sentencepiece.bpe.model"}


@pytest.mark.parametrize("architecture", PIECES)
def test_a_model_of_sentencepiece_alone_needs_its_package(
    architecture: str, tiny_model: Callable[..., Any], tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "installed_version", lambda package: None)
    tiny_model(architecture).config.save_pretrained(tmp_path)
    (tmp_path / PIECES[architecture]).write_bytes(b"pieces")
    words = (
        f"{tmp_path} has {PIECES[architecture]} and no tokenizer.json; to read it, install sentencepiece: pip install"
    )
    assert refusal(tmp_path, capfd) == f"{words} sentencepiece"


def test_a_model_of_the_hub_whose_tokenizer_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    def fails(*args: object, **options: object) -> None:
        raise ValueError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr(tokenizer, "installed_version", lambda package: None)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    monkeypatch.setattr(tokenizer, "load_config", lambda name: None)
    with pytest.raises(CheckpointError, match=r"if it has no tokenizer\.json, install .*: pip install sentencepiece$"):
        load_tokenizer("microsoft/deberta-v3-base")


def test_a_model_of_sentencepiece_is_saved_as_tokenizer_json(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    """As microsoft/deberta-v3-base on the hub has it."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a dog runs on the road", "she reads a long book", "the cat eats fish"] * 5),
        model_prefix=str(tmp_path / "spm"), vocab_size=60, hard_vocab_limit=False, minloglevel=9, pad_id=0, bos_id=1,
        eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    )  # fmt: skip
    model = tiny_model("deberta-v2")
    model.config.save_pretrained(tmp_path)
    converted = load_tokenizer(str(tmp_path))
    save_checkpoint(tmp_path / "saved", model, converted)
    saved = load_tokenizer(str(tmp_path / "saved"))
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "spm.model"))
    for text in ("a dog reads", "the cat on the road", "she eats books"):
        ids = [1, *pieces.encode(text), 2]
        assert converted(text)["input_ids"] == saved(text)["input_ids"] == ids
        assert Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).encode(text).ids == ids
