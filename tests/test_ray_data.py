"""Ray Data scores rows with two actors as `q8trt predict` scores a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scoring_fixtures import LABELS, manifest, write_real_engine

from q8trt.errors import ConfigError, DataError, NotFiniteError
from q8trt.inference import Engine
from q8trt.inference.files import ScoringConfig, score_file
from q8trt.inference.ray_data import CHUNK_ROWS, EngineActor, chunked, score
from q8trt.inference.tagging import Span
from q8trt.tasks.heads import Embedding, Head, HeadKind
from q8trt.tasks.spans import SpanAnswer

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
WORDS = ("cat", "dog runs", "a plane takes a cat", "sleeps", "a dog sleeps a cat runs")


def texts(count: int) -> list[dict[str, Any]]:
    """Rows of different lengths; row 7 has no text."""
    rows: list[dict[str, Any]] = [{"id": n, "sentence": " ".join(WORDS[: n % 5 + 1])} for n in range(count)]
    rows[7]["sentence"] = None
    return rows


def predicted(folder: Path, engine: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that `q8trt predict` writes."""
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Engine.load(engine, batch_size=32, threads=1) as opened:
        score_file(opened, ScoringConfig(source, folder / "answers.jsonl"))
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_an_actor_adds_the_columns_of_predict(tmp_path: Path) -> None:
    engine, rows = write_real_engine(tmp_path / "engine", LABELS, is_pair=False), texts(20)
    answers = EngineActor(str(engine), threads=1)(pyarrow.Table.from_pylist(rows)).to_pylist()
    assert [row.pop("rejected") for row in answers] == [
        "column 'sentence' has no value" if n == 7 else None for n in range(20)
    ]
    assert answers.pop(7) == {**rows[7], **dict.fromkeys(("label", *(f"probability_{name}" for name in LABELS)))}
    assert answers == predicted(tmp_path, engine, rows)


def test_values_that_are_no_text_are_rejected(tmp_path: Path) -> None:
    """Parquet has types that JSON lacks; a row of such a value does not stop the job."""
    actor = EngineActor(str(write_real_engine(tmp_path / "engine", LABELS, is_pair=False)), threads=1)
    for value, shown in (
        (b"cat", "\"b'cat'\""),
        (datetime(2026, 1, 2), '"datetime.datetime(2026, 1, 2, 0, 0)"'),
        (3, "3"),
    ):
        (row,) = actor(pyarrow.table({"sentence": [value]})).to_pylist()
        assert row["rejected"] == f"column 'sentence' is {shown}, expected a string"


def test_a_chunk_without_answers_has_the_types_of_others(tmp_path: Path) -> None:
    actor = EngineActor(str(write_real_engine(tmp_path / "engine", LABELS, is_pair=False)), threads=1)
    tables = [actor(pyarrow.table({"sentence": pyarrow.array([text], pyarrow.string())})) for text in ("cat", None)]
    assert tables[0].schema == tables[1].schema


class HeadOf:
    """An engine of one kind of head, which answers to each row the same, and holds the options that it was called with."""

    def __init__(self, head: Head, is_pair: bool, answer: Any) -> None:
        labels = head.labels if head.kind is not HeadKind.TOKEN_CLASSIFICATION else ()
        self.manifest = replace(manifest(labels, is_pair), head=head)
        self._answer, self.options = answer, {}

    def _answers(self, rows: Any, **options: Any) -> list[Any]:
        self.options = options
        return [self._answer for _ in rows]

    def logits(self, rows: Any, prompt: str | None = None) -> np.ndarray:
        options = {} if prompt is None else {"prompt": prompt}
        return np.array(self._answers(rows, **options), np.float32).reshape(len(rows), -1)

    def tag(self, rows: Any) -> list[Any]:
        return self._answers(rows)

    def answer(self, questions: Any, contexts: Any, **options: Any) -> list[Any]:
        return self._answers(questions, **options)


EMBEDDING = Head(HeadKind.EMBEDDING, embedding=Embedding(2, prompts={"query": "find: "}))
SPAN = pyarrow.struct(
    [("label", "string"), ("start", "int64"), ("end", "int64"), ("text", "string"), ("score", "float64")]
)
OF_HEADS: dict[str, tuple[Head, Any, dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "reranker": (
        Head(HeadKind.RERANKER), [0.5], {}, {}, {"score": "double"},
    ),
    "multi-label": (
        Head(HeadKind.MULTI_LABEL_CLASSIFICATION, ("joy", "fear")), [1.4, -0.4],  # probabilities of 0.8 and 0.4
        {"threshold": 0.3}, {},
        {"labels": "list<item: string>", "probability_joy": "double", "probability_fear": "double"},
    ),
    "embedding": (
        EMBEDDING, np.array([0.25, -1.0], np.float32), {"prompt_name": "query"}, {"prompt": "find: "},
        {"embedding": "list<item: float>"},
    ),
    "tagger": (
        Head(HeadKind.TOKEN_CLASSIFICATION, ("O", "B-PER")), [Span("PER", 0, 3, "cat", 0.5)], {}, {},
        {"spans": str(pyarrow.list_(SPAN))},
    ),
    "question-answering": (
        Head(HeadKind.QUESTION_ANSWERING), SpanAnswer("cat", 0, 3, 0.5, -1.0), {"null_score_diff_threshold": 0.0},
        {"null_score_diff_threshold": 0.0},
        {"answer": "string", "answer_start": "int64", "answer_end": "int64", "score": "double"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_HEADS)
def test_each_head_has_its_columns_and_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, answer, arguments, options, columns = OF_HEADS[name]
    is_pair = head.kind in (HeadKind.RERANKER, HeadKind.QUESTION_ANSWERING)
    engine = HeadOf(head, is_pair, answer)
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    texts = {"sentence1": ["a", None], "sentence2": ["cat", "dog"]} if is_pair else {"sentence": ["cat", None]}
    actor = EngineActor("engine", tuple(texts), **arguments)
    rows = actor(pyarrow.table(texts))
    assert {each.name: str(each.type) for each in rows.schema if each.name not in texts} == {
        **columns,
        "rejected": "string",
    }
    assert engine.options == options
    first, second = (dict(row) for row in rows.select(list(columns)).to_pylist())
    assert None not in first.values()
    if name == "multi-label":
        assert first["labels"] == ["joy", "fear"]
    assert set(second.values()) == {None}
    nothing = pyarrow.table({each: pyarrow.array([None], pyarrow.string()) for each in texts})
    assert actor(nothing).schema == rows.schema


@pytest.mark.parametrize("name", ["tagger", "question-answering"])
def test_a_row_whose_logits_overflow_is_rejected_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such text does not stop the scoring of all rows behind it."""
    head, answer, _, _, columns = OF_HEADS[name]
    engine = HeadOf(head, name != "tagger", answer)
    answers = engine._answers

    def overflow(rows: Any, **options: Any) -> list[Any]:
        if "dog" in rows:
            raise NotFiniteError("the logits of token 2 is NaN or infinite")
        return answers(rows, **options)

    monkeypatch.setattr(engine, "_answers", overflow)
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    texts = {"sentence": ["cat", "dog", "a"]}
    if name != "tagger":
        texts = {"sentence1": texts["sentence"], "sentence2": ["x", "x", "x"]}
    rows = EngineActor("engine", tuple(texts))(pyarrow.table(texts)).to_pylist()
    assert [row["rejected"] for row in rows] == [None, "the answer of the engine is NaN or infinite", None]
    assert [row[min(columns)] is None for row in rows] == [False, True, False]


def test_options_of_another_head_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "load", lambda *_, **__: HeadOf(EMBEDDING, False, None))
    for option in ("threshold", "null_score_diff_threshold"):
        with pytest.raises(ConfigError, match=f"--{option} is for "):
            EngineActor("engine", **{option: 0.5})(pyarrow.table({"sentence": ["cat"]}))
    with pytest.raises(ConfigError, match="--threshold 2, expected 0 to 1"):
        EngineActor("engine", threshold=2)


class Recorder:
    """A data set that holds the arguments of `map_batches`."""

    def __init__(self) -> None:
        self.context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False))
        self.arguments: dict[str, Any] = {}

    def repartition(self, **_: Any) -> Recorder:
        return self

    def map_batches(self, _: Any, **arguments: Any) -> None:
        self.arguments = arguments


@pytest.mark.parametrize(
    ("options", "contexts", "cpus"),
    [
        ({}, 1, 1),
        ({"threads": 3}, 1, 3),
        ({"threads": 3, "contexts": 2}, 2, 6),
        ({"num_gpus": 1}, 2, 1),
        ({"threads": 3, "num_cpus": 2}, 1, 2),
    ],
)
def test_an_actor_keeps_to_the_cpus_that_ray_reserves(options: dict[str, Any], contexts: int, cpus: int) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[data]'")
    dataset = Recorder()
    score(dataset, "engine", **options)  # type: ignore[arg-type]
    assert dataset.arguments["num_cpus"] == cpus
    assert dataset.arguments["fn_constructor_kwargs"]["contexts"] == contexts


def test_an_actor_opens_one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(Engine, "load", lambda *_, **given: arguments.update(given) or HeadOf(EMBEDDING, False, None))
    EngineActor("engine", threads=1)
    assert (arguments["threads"], arguments["contexts"]) == (1, 1)


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    actor = EngineActor(str(write_real_engine(tmp_path / "engine")), threads=1)
    with pytest.raises(DataError, match="no column 'sentence1' and 'sentence2'"):
        actor(pyarrow.table({"text": ["cat"]}))
    with pytest.raises(ConfigError, match="column 'rejected' exists already"):
        actor(pyarrow.table({"sentence1": ["cat"], "sentence2": ["dog"], "rejected": [1]}))
    with pytest.raises(ConfigError, match="workers must be 1 or more, got 0"):
        score(None, tmp_path, workers=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local Ray: a CPU for each of two actors, and two for reading and writing."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[data]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it would write a token to the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()


def test_two_workers_answer_as_predict(tmp_path: Path, ray: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The Parquet files are cut elsewhere than the chunks, and their rows come back in order."""
    engine, rows = write_real_engine(tmp_path / "engine", is_pair=False), texts(3 * CHUNK_ROWS + 100)
    (tmp_path / "rows").mkdir()
    for part, start in enumerate(range(0, len(rows), 300)):
        parquet.write_table(
            pyarrow.Table.from_pylist(rows[start : start + 300]), tmp_path / "rows" / f"{part:03}.parquet"
        )
    dataset = ray.data.read_parquet(str(tmp_path / "rows"))
    score(dataset, engine, workers=2, threads=1).write_parquet(str(tmp_path / "answers"))
    answers = sorted(parquet.read_table(tmp_path / "answers").to_pylist(), key=lambda row: row["id"])
    assert answers[7]["rejected"] == "column 'sentence' has no value"
    scores = {row["id"]: row["score"] for row in answers if row["rejected"] is None}
    assert scores == {row["id"]: row["score"] for row in predicted(tmp_path, engine, rows)}
    caplog.clear()
    with caplog.at_level("WARNING", "q8trt.inference.ray_data"):
        score(dataset, engine, workers=4, threads=1)
    assert caplog.messages == [
        "the actors reserve 4 CPUs, and Ray has 4, but reading needs one more; give fewer workers, a smaller num_cpus, or "
        "ray.init(num_cpus=5)"
    ]


def test_chunks_do_not_depend_on_the_files(ray: Any) -> None:
    """A batch, and with it the last digits of an answer, is made of the rows of one chunk."""
    parts = [ray.data.range(size) for size in (300, 500, 1, 411)]
    blocks = chunked(parts[0].union(*parts[1:])).map_batches(
        lambda block: {"rows": [len(block["id"])], "first": [block["id"][0]]}, batch_size=None
    )
    assert [row["rows"] for row in blocks.take_all()] == [CHUNK_ROWS, CHUNK_ROWS, 1212 - 2 * CHUNK_ROWS]
