"""A tagger in an app, in the scoring of files and in `q8trt quantize`; transformers' pipeline is the reference."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import WITH_TOKEN_TYPES, make_tokenizer
from token_fixtures import TAGS, make_tagger, write_token_folder
from tokenizer_fixtures import byte_level

import q8trt
from q8trt import Engine
from q8trt.cli.main import main
from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.errors import BackendError, ConfigError, InputError
from q8trt.export.onnx import ExportOptions, export_onnx
from q8trt.inference.tagging import AGGREGATIONS, Tagger
from q8trt.quantization.precision import Precision
from q8trt.tasks.heads import Head, HeadKind

TEXTS = (
    "Mary Walker lives by the riverside, in Oldtown.", "a dog", "The U.S. train (to Paris) is slow!",
    "birds sing", "zzzz qqqq", "the young woman runs on a street with the old man of the house by the sea",
)  # fmt: skip
LONG = " ".join(f"{text} {number}" for number in range(6) for text in TEXTS)


def tagger_engine(
    folder: Path, architecture: str = "bert", labels: tuple[str, ...] = TAGS, max_length: int = 32
) -> Path:
    """An engine folder of a tiny tagger, without a plan."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(architecture in WITH_TOKEN_TYPES)
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names]
    export_onnx(make_tagger(architecture), folder / "model.onnx", "fp32", names, ExportOptions("torchscript"))
    tokenizer.save_pretrained(folder)
    task = TaskInfo("token-classification", list(labels), False, False, "agreement")
    info = ModelInfo("tiny", architecture, len(labels), 64, tokenizer.pad_token_id, max_length)
    head = Head(HeadKind.TOKEN_CLASSIFICATION, labels, max_length)
    write_manifest(folder, Manifest(task, info, Precision.FP32, None, names, 20, head=head))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tagger_engine(tmp_path_factory.mktemp("tag") / "engine")


def pipeline(aggregation: str, **options: Any) -> Any:
    from transformers import TokenClassificationPipeline

    return TokenClassificationPipeline(
        model=make_tagger(), tokenizer=make_tokenizer(), aggregation_strategy=aggregation, device="cpu", **options
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_spans_are_those_of_transformers(aggregation: str, folder: Path) -> None:
    expected = pipeline(aggregation)(list(TEXTS))
    with Engine.load(folder, device="cpu") as engine:
        spans = engine.tag(TEXTS, aggregation)
    assert any(expected)
    for text, ours, theirs in zip(TEXTS, spans, expected, strict=True):
        assert [(each.label, each.start, each.end) for each in ours] == [
            (each["entity_group"], each["start"], each["end"]) for each in theirs
        ]
        assert [each.text for each in ours] == [text[each.start : each.end] for each in ours]
        np.testing.assert_allclose([each.score for each in ours], [each["score"] for each in theirs], atol=1e-5)


def test_a_long_text_is_answered_where_each_token_has_most_context(folder: Path) -> None:
    """Each token's logits are those of the window in which it is farthest from an edge."""
    import torch

    model, tokenizer = make_tagger(), make_tokenizer()
    encoded = tokenizer(
        LONG, truncation=True, max_length=32, stride=15, return_overflowing_tokens=True, return_offsets_mapping=True
    )
    with torch.inference_mode():
        windows = [
            model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64)).logits[
                0, 1:-1
            ]
            for ids in encoded["input_ids"]
        ]
    best: dict[tuple[int, int], tuple[int, Any]] = {}
    for logits, offsets in zip(windows, encoded["offset_mapping"], strict=True):
        inside = offsets[1:-1]
        for place, (start, end) in enumerate(inside):
            context = min(place, len(inside) - 1 - place)
            if (start, end) not in best or context > best[start, end][0]:
                best[start, end] = context, logits[place]
    expected = {at: TAGS[int(logits.argmax())] for at, (_, logits) in best.items()}
    with Engine.load(folder, device="cpu") as engine:
        (spans,) = engine.tag([LONG], "simple")
        assert engine.truncated == 0
    tagged = {at: tag for at, tag in expected.items() if tag != "O"}
    assert len(windows) > 5
    for at, tag in tagged.items():
        (span,) = [each for each in spans if each.start <= at[0] and at[1] <= each.end]
        assert span.label == tag[2:]
    assert sum(each.end - each.start for each in spans) >= sum(end - start for start, end in tagged)
    assert len(spans) <= len(tagged)


def test_requests_of_an_event_loop(folder: Path) -> None:
    with Engine.load(folder, device="cpu") as engine:

        async def ask() -> Any:
            return await asyncio.gather(engine.atag(LONG), engine.atag(list(TEXTS)), engine.atag([]))

        one, others, none = asyncio.run(ask())
        for ours, theirs in zip([one, *others], engine.tag([LONG, *TEXTS]), strict=True):
            assert [(s.label, s.start, s.end) for s in ours] == [(s.label, s.start, s.end) for s in theirs]
        assert none == engine.tag([]) == []


def test_what_cannot_be_tagged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine.load(folder, device="cpu") as engine:
        for items, message in (
            (["a", " "], "item 1: the text is empty"),
            (["a", "b " * 600_000], "item 1: 1,200,000 characters, expected 1,048,576 at most"),
            ("a dog", "expected a list of items"),
        ):
            with pytest.raises(InputError, match=message):
                engine.tag(items)
        with pytest.raises(ConfigError, match="aggregation 'last', expected one of simple, first, average, max"):
            engine.tag(["a"], "last")
        monkeypatch.setattr(engine._model, "logits", lambda tokens: np.full((4, 5), np.nan, np.float32))
        with pytest.raises(BackendError, match="the logits of token 0 is NaN or infinite"):
            engine.tag(["a dog"])


def test_a_token_of_blanks_is_no_span() -> None:
    """Byte-level BPE has a token for each line break."""
    manifest = SimpleNamespace(head=Head(HeadKind.TOKEN_CLASSIFICATION, ("O", "B-LOC", "I-LOC")))
    tagger = Tagger(SimpleNamespace(tokenizer=byte_level(), max_length=64), manifest)  # type: ignore[arg-type]
    text = "hello\r\nworld\r\n"
    windows = tagger._encoder.encode([(text,)])
    logits = np.tile(np.float32([0, 1, 0]), (len(windows.input_ids[0]), 1))
    for aggregation in AGGREGATIONS:
        (spans,) = tagger.spans([text], windows, logits, aggregation)
        assert {span.label for span in spans} == {"LOC"}
        assert "".join(span.text for span in spans) == "helloworld"
        assert all(span.text == text[span.start : span.end] and span.text.strip() for span in spans)


def test_each_word_has_its_part_of_speech(tmp_path: Path) -> None:
    labels = ("NOUN", "VERB", "DET", "ADP", "ADJ")
    with Engine.load(tagger_engine(tmp_path / "engine", labels=labels), device="cpu") as engine:
        (spans,) = engine.tag(["the young woman runs on the riverside"])
    assert [span.text for span in spans] == ["the", "young", "woman", "runs", "on", "the", "riverside"]
    assert {span.label for span in spans} <= set(labels)


def test_spans_in_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyarrow import parquet

    path = tmp_path / "in.jsonl"
    path.write_text(
        "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate([*TEXTS, LONG]))
    )
    for name in ("out.jsonl", "out.parquet", "out.csv"):
        words = [
            "predict",
            "--engine",
            str(folder),
            "--input",
            str(path),
            "--output",
            str(tmp_path / name),
            "--device",
            "cpu",
        ]
        assert main(words) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with Engine.load(folder, device="cpu") as engine:
        expected = engine.tag([*TEXTS, LONG])
    assert [row["id"] for row in rows] == list(range(len(TEXTS) + 1))
    for row, spans in zip(rows, expected, strict=True):
        assert [(each["label"], each["start"], each["end"], each["text"]) for each in row["spans"]] == [
            (span.label, span.start, span.end, span.text) for span in spans
        ]
        assert set(row) == {"id", "text", "spans"}
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["spans"] for row in table] == [row["spans"] for row in rows]
    for name in ("out.jsonl", "out.parquet", "out.csv"):
        words = ["predict", "--engine", str(folder), "--input", str(path), "--output", str(tmp_path / name)]
        assert main([*words, "--device", "cpu"]) == 2
        assert main([*words, "--device", "cpu", "--overwrite"]) == 0, capsys.readouterr().err
    assert main(["predict", "--engine", str(folder), "--input", str(path), "--output", str(tmp_path / "out.npy")]) == 2
    assert "out.npy" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_export")
def test_a_tagger_with_labels_end_to_end(architecture: str, tmp_path: Path) -> None:
    """Quantize, score by entities, open the engine, tag; FP32's engine has the spans of transformers."""
    folder = write_token_folder(tmp_path / "model", architecture=architecture)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "dev.conll").write_text("Mary B-PER\nWalker I-PER\nruns O\n\nOldtown B-LOC\nsleeps O\n" * 3)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    model = q8trt.quantize(
        folder, texts=tmp_path / "texts.txt", validation_file=tmp_path / "dev.conll", recipe="linear", target="cpu",
        calibration_samples=8, max_seq_length=16, output_dir=tmp_path / "run",
    )  # fmt: skip
    assert list(model.run.scores["ptq"]["dev"]) == ["entity_f1", "entity_precision", "entity_recall", "token_accuracy"]
    assert model.report is not None
    for row in model.report.rows:
        stage = {"fp32": "fp32", "int8": "ptq"}[row.precision.value]
        assert row.metrics["token_accuracy"] == pytest.approx(model.run.scores[stage]["dev"]["token_accuracy"], abs=0.2)
    with Engine.load(model.engines[0], device="cpu") as engine:
        assert engine.manifest.precision is Precision.FP32
        assert all(span.label in ("PER", "LOC") for spans in engine.tag(TEXTS) for span in spans)
    with Engine.load(model.engines[-1], device="cpu") as engine:
        assert engine.manifest.task.main_metric == "entity_f1"
        assert len(engine.tag(TEXTS)) == len(TEXTS)
