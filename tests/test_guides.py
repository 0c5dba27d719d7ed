"""The guides to the reader's own models and data: their commands run in order, on tiny models, few rows and steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model, make_model_of, make_tokenizer
from embedding_fixtures import TEXTS, write_embedding_folder
from page_commands import GUIDES, OF_Q8TRT, SMALL, Command
from test_question_answering import squad_document
from test_question_windows import questions
from test_rerank import SIGMOID, write_reranker
from test_sentences import conll
from tiny_data import SHORT
from token_fixtures import write_token_folder

from q8trt.cli.main import run_command

#: Command -> options that make its work small.
OPTIONS = {
    "quantize": ("--recipe", "linear", "--calibration_samples", "16", "--max_seq_length", "32", "--no_baseline"),
    "finetune": ("--num_train_epochs", "1", "--recipe", "linear", *SHORT),
    "benchmark": ("--shapes", "1x16", "--iterations", "2", "--warmup", "0"),
}
#: Commands whose engines a later command of the guide reads; others build none.
WITH_ENGINES = (
    "q8trt quantize my-model --texts texts.txt --target cpu --output_dir runs/cpu",
    "q8trt quantize my-model --texts texts.txt --target cpu --recipe gpu --output_dir runs/gpu",
    "q8trt quantize my-squad-model --texts questions.jsonl",
)
#: Pairs of texts.
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))


def write_lines(name: str, rows: list[dict[str, Any]]) -> None:
    """Write JSON Lines or, by the name, a CSV file."""
    if name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def save(name: str, model: Any) -> str:
    model.save_pretrained(name)
    make_tokenizer().save_pretrained(name)
    return name


def write_scores() -> str:
    for name in ("texts.csv", "dev.csv"):
        write_lines(name, [{"sentence": text, "label": number / 9} for number, text in enumerate(TEXTS)])
    return save("my-model", make_model("bert", 1))


def write_own_rows() -> str:
    for name in ("train", "dev"):
        rows = [{"sentence1": a.replace(",", ""), "sentence2": b, "label": n % 2} for n, (a, b) in enumerate(PAIRS)]
        write_lines(f"{name}.csv", rows)
        rows = [{"question": a, "passage": b, "relevance": number / 9} for number, (a, b) in enumerate(PAIRS)]
        write_lines(f"{name}.jsonl", rows)
    return save("my-model", make_model("bert", 1))


def write_embedders() -> str:
    for name in ("minilm", "my-embedder"):
        write_embedding_folder(Path(name))
    return save("my-encoder", make_model("bert", 1).base_model)


def write_multi_label() -> str:
    labels = ("anger", "joy", "fear")
    for name in ("train.jsonl", "dev.jsonl"):
        write_lines(name, [{"text": text, "labels": labels[n % 2 : n % 4]} for n, text in enumerate(TEXTS)])
    numbers = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    model = make_model_of("SequenceClassification", "bert", 3)
    model.config.update({**numbers, "problem_type": "multi_label_classification"})
    return save("my-classifier", model)


def write_questions() -> str:
    rows = questions()
    for name in ("train-v2.0.json", "dev-v2.0.json"):
        Path(name).write_text(json.dumps(squad_document(rows)), encoding="utf-8")
    columns = [{"question": q, "context": c} for q, c in zip(rows.first, rows.second, strict=True)]
    write_lines("questions.jsonl", columns)
    write_lines("questions.csv", columns)
    return str(write_token_folder(Path("my-squad-model"), "question-answering"))


def write_rerankers() -> str:
    for name in ("pairs.jsonl", "pairs.csv"):
        rows = [{"query": f'"{a}"' if ".csv" in name else a, "passage": b.replace(",", "")} for a, b in PAIRS]
        write_lines(name, rows)
    write_reranker(Path("bge-reranker"))
    return str(write_reranker(Path("my-reranker"), sentence_transformers={"activation_fn": SIGMOID}))


def write_sentences() -> str:
    for name in ("train.conll", "dev.conll"):
        Path(name).write_text(f"{conll()}\n\n" * 4, encoding="utf-8")
    return str(write_token_folder(Path("my-ner")))


#: Page -> writes the models and data that its commands name; returns the model to fine-tune.
FILES: dict[str, Callable[[], str]] = {
    "cpu": write_scores,
    "data": write_own_rows,
    "embeddings": write_embedders,
    "models": write_scores,
    "multi-label": write_multi_label,
    "question-answering": write_questions,
    "rerankers": write_rerankers,
    "token-classification": write_sentences,
}

#: Text -> the first of the commands of `GUIDES` that no other test runs.
FIRST: dict[str, Command] = {}
for one in OF_Q8TRT:
    if one.page in GUIDES and not (one.reason or one.runs_here or one.text in SMALL):
        FIRST.setdefault(one.text, one)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_export", "rtx")
@pytest.mark.parametrize("page", GUIDES)
def test_commands_of_the_guide_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(f"{text} {word}" for text in TEXTS for word in ("big", "red")))
    model = FILES[Path(page).stem]()
    for number, each in enumerate(each for each in OF_Q8TRT if each.page == page and FIRST.get(each.text) is each):
        options = (*OPTIONS.get(str(each.name), ()), *each.in_runs(str(number)))
        if each.name == "finetune":
            options = ("--model_name_or_path", model, *options)
        elif each.name == "quantize" and "--target" not in each.words:
            options = ("--target", "cpu", *options)
        elif each.name == "predict":
            shutil.copytree("runs/0/engine-ptq", "runs/NAME/engine")
        if each.name == "quantize" and each.text not in WITH_ENGINES:
            options = (*options, "--no_build_engines")
        assert run_command(str(each.name), [*each.arguments, *options]) == 0, each.text
