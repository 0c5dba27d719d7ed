"""Ray Data scores rows with two actors as `q8trt predict` scores a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scoring_fixtures import LABELS, write_real_engine

from q8trt.errors import ConfigError, DataError
from q8trt.inference import Engine
from q8trt.inference.files import ScoringConfig, score_file
from q8trt.inference.ray_data import CHUNK_ROWS, EngineActor, score

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


def test_a_chunk_without_answers_has_the_types_of_others(tmp_path: Path) -> None:
    actor = EngineActor(str(write_real_engine(tmp_path / "engine", LABELS, is_pair=False)), threads=1)
    tables = [actor(pyarrow.table({"sentence": pyarrow.array([text], pyarrow.string())})) for text in ("cat", None)]
    assert tables[0].schema == tables[1].schema


def test_tables_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    actor = EngineActor(str(write_real_engine(tmp_path / "engine")), threads=1)
    with pytest.raises(DataError, match="no column 'sentence1' and 'sentence2'"):
        actor(pyarrow.table({"text": ["cat"]}))
    with pytest.raises(ConfigError, match="column 'rejected' is there already"):
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


def test_two_workers_answer_as_predict(tmp_path: Path, ray: Any) -> None:
    """The Parquet files are cut elsewhere than the chunks, and their rows come back in order."""
    engine, rows = write_real_engine(tmp_path / "engine", is_pair=False), texts(3 * CHUNK_ROWS + 100)
    (tmp_path / "rows").mkdir()
    for part, start in enumerate(range(0, len(rows), 300)):
        parquet.write_table(
            pyarrow.Table.from_pylist(rows[start : start + 300]), tmp_path / "rows" / f"{part:03}.parquet"
        )
    dataset = ray.data.read_parquet(str(tmp_path / "rows"))
    score(dataset, engine, workers=2, threads=1).write_parquet(str(tmp_path / "answers"))
    answers = ray.data.read_parquet(str(tmp_path / "answers")).sort("id").take_all()
    assert answers[7]["rejected"] == "column 'sentence' has no value"
    scores = {row["id"]: row["score"] for row in answers if row["rejected"] is None}
    assert scores == {row["id"]: row["score"] for row in predicted(tmp_path, engine, rows)}
