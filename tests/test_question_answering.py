"""Question answering end to end on a tiny random model: quantize, scores, `Engine.answer`, and transformers' own answers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from test_question_windows import questions
from token_fixtures import make_reader, write_token_folder

import q8trt
from q8trt.errors import ConfigError, DataError, InputError
from q8trt.models import checkpoints
from q8trt.runs.config import config_of_run
from q8trt.tasks.data.questions import Questions
from q8trt.tasks.glue import task_of_head
from q8trt.tasks.heads import Head, HeadKind
from q8trt.tasks.spans import SpanAnswer

TASK = task_of_head(Head(HeadKind.QUESTION_ANSWERING), is_pair=True, has_labels=True)


def squad_document(rows: Questions) -> dict[str, Any]:
    def paragraph(number: int) -> dict[str, Any]:
        answers = [{"text": each.text, "answer_start": each.start} for each in rows.references[number]]
        qas = [{"id": str(number), "question": rows.first[number], "answers": answers, "is_impossible": not answers}]
        return {"context": rows.second[number], "qas": qas}

    return {"data": [{"title": "t", "paragraphs": [paragraph(number) for number in range(len(rows))]}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_token_folder(tmp_path_factory.mktemp("model") / "reader", "question-answering")


@pytest.fixture(scope="module")
def quantized(folder: Path, quick_export: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on questions with answers, some of which have none, and its engines."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    path = tmp_path_factory.mktemp("run")
    rows = questions()
    (path / "dev.json").write_text(json.dumps(squad_document(rows)))
    texts = [{"question": q, "context": c} for q, c in zip(rows.first, rows.second, strict=True)]
    (path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    lines: list[str] = []
    quantized = q8trt.quantize(
        folder, texts=path / "texts.jsonl", validation_file=path / "dev.json", target="cpu", recipe="linear",
        calibration_samples=16, output_dir=path / "run", on_message=lines.append,
    )  # fmt: skip
    (path / "lines.txt").write_text("\n".join(lines))
    return quantized


@pytest.fixture(scope="module")
def fp32_engine(quantized: Any) -> Path:
    return next(path for path in quantized.engines if "fp32" in path.name)


def transformers_answer(model: Any, question: str, context: str, threshold: float | None) -> tuple[str, float]:
    """The answer by the rules of run_qa.py and utils_qa.py: windows by the tokenizer, each pair of tokens in turn."""
    tokenizer = make_tokenizer()
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=64, stride=(64 - 1 - len(tokenizer(question).input_ids)) // 2,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    best: list[tuple[float, str]] = []
    none = np.inf
    for index in range(len(encoded["input_ids"])):
        names = ("input_ids", "attention_mask", "token_type_ids")
        outputs = model(**{name: torch.tensor([encoded[name][index]]) for name in names})
        start, end = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
        none = min(none, start[0] + end[0])
        offsets = encoded["offset_mapping"][index]
        tokens = [place for place, sequence in enumerate(encoded.sequence_ids(index)) if sequence == 1]
        for i in tokens:
            best += [(start[i] + end[j], context[offsets[i][0] : offsets[j][1]]) for j in tokens if i <= j < i + 30]
    score, text = max(best)
    return ("" if threshold is not None and none - score > threshold else text), none - score


def test_counts_are_of_questions_and_of_their_windows(quantized: Any, capsys: pytest.CaptureFixture[str]) -> None:
    count, windows = len(questions()), quantized.report.rows_evaluated
    assert quantized.report.questions_evaluated == count < windows
    assert f"{count} questions, {windows} windows of dev" in (quantized.run.path.parent / "lines.txt").read_text()
    assert quantized.report.title.startswith(f"question-answering dev, {count} questions, {windows} windows, ")
    assert quantized.report.to_dict()["questions_evaluated"] == count
    titles: set[str] = set()
    shown = q8trt.parity(quantized.engines[0], samples=3, progress=lambda title, *_: titles.add(title))[0]
    assert shown.questions == 3
    assert all(f"{title.partition(',')[0]}, 3 questions, " in title for title in titles if title.startswith("torch"))
    assert dict(shown.facts({}))["data"].startswith("question-answering dev, 3 questions, ")


def test_fp32_answers_are_those_of_transformers(fp32_engine: Path) -> None:
    rows, model = questions(), make_reader()
    with q8trt.Engine.load(fp32_engine, device="cpu") as engine:
        middle = float(np.median([each.null_score_diff for each in engine.answer(rows.first, rows.second)]))
        for threshold in (None, 0.0, middle):
            answers = engine.answer(rows.first, rows.second, null_score_diff_threshold=threshold)
            expected = [
                transformers_answer(model, *pair, threshold) for pair in zip(rows.first, rows.second, strict=True)
            ]
            assert [answer.text for answer in answers] == [text for text, _ in expected]
            np.testing.assert_allclose(
                [answer.null_score_diff for answer in answers], [d for _, d in expected], atol=1e-4
            )
            for answer, context in zip(answers, rows.second, strict=True):
                assert answer.text == context[answer.start : answer.end]
                assert 0 < answer.score <= 1
        assert sum(each.has_answer for each in answers) == len(rows) // 2


def test_questions_alone_together_and_in_a_loop_have_the_same_answers(fp32_engine: Path) -> None:
    rows = questions()

    def same(ours: list[SpanAnswer], theirs: list[SpanAnswer]) -> bool:
        return [(each.text, each.start) for each in ours] == [(each.text, each.start) for each in theirs]

    async def ask(engine: Any) -> list[SpanAnswer]:
        tasks = [engine.aanswer(*pair) for pair in zip(rows.first, rows.second, strict=True)]
        return [*await asyncio.gather(*tasks)]

    with q8trt.Engine.load(fp32_engine, device="cpu") as engine:
        together = engine.answer(rows.first, rows.second)
        assert same([engine.answer(*pair) for pair in zip(rows.first, rows.second, strict=True)], together)
        assert same(asyncio.run(ask(engine)), together)
        assert same(asyncio.run(engine.aanswer(rows.first, rows.second)), together)
        about_one = engine.answer(rows.first, rows.second[0])
        assert same(about_one, engine.answer(rows.first, [rows.second[0]] * len(rows)))
        assert engine.answer([], []) == asyncio.run(engine.aanswer([], "a text")) == []
        assert engine.truncated == 0
        engine.answer("what " * 70, "a text")
        assert engine.truncated == 1


def test_what_is_no_question_is_refused(fp32_engine: Path) -> None:
    with q8trt.Engine.load(fp32_engine, device="cpu") as engine:
        for arguments, message in [
            (("who?", ["a", "b"]), "lists of them"),
            ((["who?"], ["a", "b"]), "1 questions and 2 contexts"),
            ((["who?", " "], "a text"), "item 1: the text is empty"),
            ((["who?", "where?"], ["a text", 5]), "item 1: .* is not text"),
            (("who?", "x" * (2**20 + 1)), "item 0: a context of 1,048,577 characters; give 1,048,576 or fewer"),
        ]:
            with pytest.raises(InputError, match=message):
                engine.answer(*arguments)
        for options, message in [
            ({"max_answer": 3}, "unknown option 'max_answer' .did you mean 'max_answer_length'"),
            ({"max_answer_length": 0}, "1 or more"),
        ]:
            with pytest.raises(ConfigError, match=message):
                engine.answer("who?", "a text", **options)


def test_windows_are_longer_than_other_examples_where_no_option_says_it() -> None:
    from q8trt.tasks.data import DataConfig

    assert DataConfig("question-answering", validation_file="dev.json").max_seq_length == 384
    assert DataConfig("question-answering", validation_file="dev.json", max_seq_length=128).max_seq_length == 128
    assert DataConfig("STS-B").max_seq_length == 128


def test_scores_of_a_run_are_those_of_its_engine(quantized: Any, fp32_engine: Path) -> None:
    from q8trt.tasks.squad import squad_metrics

    rows = questions()
    names = {"answer_f1", "exact_match", "has_answer_f1", "has_answer_exact", "no_answer_f1", "no_answer_exact"}
    scores = {stage: quantized.run.scores[stage]["dev"] for stage in ("fp32", "ptq")}
    assert {*scores["fp32"]} == {*scores["ptq"]} == names
    with q8trt.Engine.load(fp32_engine, device="cpu") as engine:
        answers = engine.answer(rows.first, rows.second, null_score_diff_threshold=0.0)
    references = [[each.text for each in right] for right in rows.references]
    assert squad_metrics([answer.text for answer in answers], references) == pytest.approx(scores["fp32"])
    assert 0 < scores["fp32"]["answer_f1"] < 1
    assert quantized.report.main_metric == "answer_f1"
    by_precision = {row.precision.value: row.metrics for row in quantized.report.rows}
    assert by_precision["fp32"] == pytest.approx(scores["fp32"])
    assert {*by_precision["int8"]} == names
    assert config_of_run(quantized.run).data.max_seq_length == 64
    parity = q8trt.parity(quantized.engines[-1], batch_sizes=(1, 4))
    assert all(pair.logits_error < 1 for each in parity for pair in each.pairs)


def test_questions_without_answers_are_compared_with_fp32(folder: Path, tmp_path: Path) -> None:
    rows = questions()
    (tmp_path / "dev.json").write_text(json.dumps(squad_document(rows)))
    run = q8trt.quantize(
        folder, texts=tmp_path / "dev.json", target="cpu", recipe="linear", calibration_samples=8, build_engines=False,
        output_dir=tmp_path / "run",
    ).run  # fmt: skip
    scores = run.scores
    assert (scores["fp32"]["dev"]["span_agreement"], scores["fp32"]["dev"]["span_f1"]) == (1, 1)
    assert 0 <= scores["ptq"]["dev"]["span_agreement"] <= scores["ptq"]["dev"]["span_f1"] <= 1
    assert scores["ptq"]["dev"]["logit_mean"] > 0


def test_predict_writes_answers(fp32_engine: Path, tmp_path: Path) -> None:
    """Files of each kind get the answers of `Engine.answer`; a row without a context is set aside."""
    import csv

    rows = questions(4)
    lines = [{"question": q, "context": c, "n": 1} for q, c in zip(rows.first, rows.second, strict=True)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*lines, {"question": "what?", "n": 2}])
    )
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("question", "context"), *zip(rows.first, rows.second, strict=True)])
    with q8trt.Engine.load(fp32_engine, device="cpu") as engine:
        expected = engine.answer(rows.first, rows.second)
        threshold = sorted(each.null_score_diff for each in expected)[1] + 1e-3  # two of four have no answer
        strict = engine.answer(rows.first, rows.second, null_score_diff_threshold=threshold)
        summary = q8trt.predict(engine, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
        assert (summary.rows, summary.rejected) == (4, 1)
        assert summary.names == ("answer", "answer_start", "answer_end", "score")
        written = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
        assert [(row["answer"], row["answer_start"], row["answer_end"]) for row in written] == [
            (each.text, each.start, each.end) for each in expected
        ]
        np.testing.assert_allclose([row["score"] for row in written], [each.score for each in expected], rtol=1e-4)
        q8trt.predict(engine, tmp_path / "a.csv", tmp_path / "b.csv", null_score_diff_threshold=threshold)
        with (tmp_path / "b.csv").open(newline="") as file:
            assert [row["answer"] for row in csv.DictReader(file)] == [each.text for each in strict]
        assert sum(each.has_answer for each in strict) == 2
        (tmp_path / "c.csv").write_text("sentence,context\na,b\n")
        with pytest.raises(DataError, match="no column 'question', on which the engine was trained"):
            q8trt.predict(engine, tmp_path / "c.csv", tmp_path / "d.csv")
        with pytest.raises(ConfigError, match="--threshold is for a multi-label classifier"):
            q8trt.predict(engine, tmp_path / "a.csv", tmp_path / "d.csv", threshold=0.3)


LIGHT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnx", "scipy", "sklearn", "yaml", "rich", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from q8trt import Engine
folder, questions, contexts = json.load(sys.stdin)
with Engine.load(folder, device="cpu") as engine:
    print(json.dumps([[answer.text, answer.start] for answer in engine.answer(questions, contexts)]))
"""


def test_the_light_install_answers(fp32_engine: Path) -> None:
    rows = questions(3)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], input=json.dumps([str(fp32_engine), rows.first, rows.second]), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with q8trt.Engine.load(fp32_engine, device="cpu") as engine:
        assert json.loads(done.stdout) == [[each.text, each.start] for each in engine.answer(rows.first, rows.second)]


def test_commands_refuse_bad_questions_in_one_line(folder: Path, fp32_engine: Path, tmp_path: Path) -> None:
    from q8trt.cli.main import main

    rows = {
        "columns.jsonl": {"query": "who?", "context": "a dog", "answers": {"text": [], "answer_start": []}},
        "place.jsonl": {"question": "who?", "context": "a dog", "answers": {"text": ["dog"], "answer_start": [1]}},
        "long.jsonl": {"question": "who?", "context": "a " * 2**20, "answers": {"text": [], "answer_start": []}},
    }
    for name, row in rows.items():
        (tmp_path / name).write_text((json.dumps(row) + "\n") * 3)  # one row alone would be both splits
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "questions.csv").write_text("question\nwho?\n")
    run = ["--output_dir", str(tmp_path / "run"), "--no_build_engines"]
    for words, message in [
        (["quantize", str(folder), "--validation_file", str(tmp_path / "columns.jsonl"), *run], "no column 'question'"),
        (["quantize", str(folder), "--validation_file", str(tmp_path / "place.jsonl"), *run], "is not at answer_start 1"),
        (["quantize", str(folder), "--validation_file", str(tmp_path / "long.jsonl"), *run], "a context of 2,097,152"),
        (["quantize", str(folder), "--validation_file", str(tmp_path / "empty.json"), *run], "empty.json: not JSON"),
        (["quantize", str(folder), "--texts", str(tmp_path / "questions.csv"), *run], "'question' and 'context'"),
        (["quantize", str(folder), "--texts", str(tmp_path / "long.jsonl"), *run], "a context of 2,097,152"),
        (["predict", "--engine", str(fp32_engine), "--input", str(tmp_path / "questions.csv"), "--output",
          str(tmp_path / "a.csv")], "no column 'context', on which the engine was trained"),
    ]:  # fmt: skip
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            assert main(words) == 2, words
        assert message in errors.getvalue()
        assert errors.getvalue().strip().count("\n") == 0
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "a.csv").exists()


def test_an_engine_is_scored_on_other_questions(fp32_engine: Path, quantized: Any, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(squad_document(questions().take(5))))
    report = q8trt.benchmark(
        fp32_engine, task="question-answering", validation_file=str(tmp_path / "other.json"), max_seq_length=64, shapes="1x16",
        iterations=2, warmup=1, max_seconds=1, layer_times=False,
    )  # fmt: skip
    assert report.main_metric == "answer_f1"
    assert 0 <= report.rows[0].metrics["answer_f1"] <= 1


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    """The labels reach the model as start and end positions."""
    from q8trt.tasks.data import Collator
    from q8trt.tasks.data.question_windows import question_windows

    model = checkpoints.load_finetuned(write_token_folder(tmp_path / "m", "question-answering"), TASK)
    windows = question_windows(questions(), make_tokenizer(), 64)
    batch = Collator(0, (64,))([windows[index] for index in range(4)])
    labels = batch.pop("labels")
    theirs = make_reader()(**batch, start_positions=labels[:, 0], end_positions=labels[:, 1])
    torch.testing.assert_close(model(**batch, labels=labels).loss, theirs.loss)


def test_fine_tuning_on_squad(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """An encoder with another head gets a new one, trains, is calibrated and trains with quantizers in."""
    (tmp_path / "a.json").write_text(json.dumps(squad_document(questions())))
    files = {"train_file": str(tmp_path / "a.json"), "validation_file": str(tmp_path / "a.json")}
    run = q8trt.finetune(
        task="question-answering", model_name_or_path=str(tiny_checkpoint), **files, max_seq_length=64, use_cpu=True, max_steps=2,
        eval_steps=2, save_steps=2, per_device_train_batch_size=4, target="cpu", output_dir=tmp_path / "run",
    )  # fmt: skip
    assert [*run.scores] == ["fp32", "ptq", "int8"]
    assert all(0 <= stage["dev"]["answer_f1"] <= 1 for stage in run.scores.values())
    assert json.loads((run.path / "int8" / "config.json").read_text())["architectures"] == ["BertForQuestionAnswering"]
    for source, message in [
        ({"train_file": files["train_file"]}, "--validation_file is missing"),
        ({"validation_file": files["validation_file"]}, "--train_file is missing: training needs rows with labels"),
        ({}, "--task question-answering needs --train_file and --validation_file"),
        ({**files, "label_list": ("no", "yes")}, "--label_list is for --task custom"),
    ]:
        with pytest.raises(ConfigError, match=message):
            q8trt.finetune(
                task="question-answering", model_name_or_path=str(tiny_checkpoint), max_seq_length=64, use_cpu=True,
                output_dir=tmp_path / "other", **source,
            )  # fmt: skip
    assert not (tmp_path / "other").exists()
