"""Requests that come at the same time run together; each gets its own answer, or its own error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pytest
from waiting import PATIENCE

from q8trt.errors import ClosedError, ConfigError
from q8trt.inference.microbatch import MicroBatcher


class Model:
    """Answers each row with its text in upper case; notes the batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, rows: Sequence[tuple[str, ...]]) -> list[str]:
        self.batches.append([row[0] for row in rows])
        self.started.set()
        assert self.go.wait(PATIENCE)
        if any(row[0] == "bad" for row in rows):
            raise RuntimeError("refused")
        return [row[0].upper() for row in rows]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[MicroBatcher]:
    made = MicroBatcher(model, max_batch=4, max_wait_ms=20)
    yield made
    model.go.set()
    made.close()


def submit(batcher: MicroBatcher, *texts: str) -> list[Future[list[str]]]:
    return [batcher.submit([(text,)]) for text in texts]


def results(futures: Sequence[Future[list[str]]]) -> list[list[str]]:
    return [future.result(PATIENCE) for future in futures]


def test_what_comes_within_the_wait_runs_together(model: Model) -> None:
    batcher = MicroBatcher(model, max_batch=4, max_wait_ms=500)
    assert results(submit(batcher, "a", "b", "c")) == [["A"], ["B"], ["C"]]
    assert model.batches == [["a", "b", "c"]]
    batcher.close()


def test_a_full_batch_does_not_wait() -> None:
    model = Model()
    batcher = MicroBatcher(model, max_batch=2, max_wait_ms=60_000)
    assert results(submit(batcher, "a", "b", "c", "d")) == [["A"], ["B"], ["C"], ["D"]]
    assert model.batches == [["a", "b"], ["c", "d"]]
    batcher.close()


def test_what_comes_while_a_batch_runs_makes_the_next(model: Model, batcher: MicroBatcher) -> None:
    model.go.clear()
    first = submit(batcher, "a")
    assert model.started.wait(PATIENCE)
    others = submit(batcher, "b", "c", "d", "e", "f")
    model.go.set()
    assert results([*first, *others]) == [["A"], ["B"], ["C"], ["D"], ["E"], ["F"]]
    assert model.batches == [["a"], ["b", "c", "d", "e"], ["f"]]


def test_a_request_of_many_rows_waits_behind_the_others(model: Model, batcher: MicroBatcher) -> None:
    model.go.clear()
    first = submit(batcher, "a")
    assert model.started.wait(PATIENCE)
    futures = [batcher.submit([(text,) for text in texts]) for texts in ("bcdefghij", "k", "lm")]
    model.go.set()
    assert results([*first, *futures]) == [["A"], list("BCDEFGHIJ"), ["K"], ["L", "M"]]
    assert model.batches == [["a"], list("bcde"), list("klmfghi"), ["j"]]


def test_a_request_gives_a_batch_its_share_at_most(model: Model) -> None:
    batcher = MicroBatcher(model, max_batch=4, max_wait_ms=0, share=2)
    assert results([batcher.submit([(text,) for text in "abcde"])]) == [list("ABCDE")]
    assert model.batches == [["a", "b"], ["c", "d"], ["e"]]
    batcher.close()


def test_an_error_in_a_later_part_ends_the_request(model: Model) -> None:
    batcher = MicroBatcher(model, max_batch=2, max_wait_ms=0)
    with pytest.raises(RuntimeError, match="refused"):
        batcher.submit([("a",), ("b",), ("bad",), ("c",)]).result(PATIENCE)
    assert model.batches == [["a", "b"], ["bad", "c"]]
    batcher.close()


def test_closing_answers_the_rest_of_a_long_request(model: Model) -> None:
    batcher = MicroBatcher(model, max_batch=2, max_wait_ms=0)
    model.go.clear()
    waiting = batcher.submit([(text,) for text in "abcdefg"])
    assert model.started.wait(PATIENCE)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.go.set()
    closing.join(PATIENCE)
    assert waiting.result(0) == list("ABCDEFG")


def test_a_batcher_that_is_dropped_ends_its_thread(model: Model) -> None:
    batcher = MicroBatcher(model, max_batch=2, max_wait_ms=0)
    assert results(submit(batcher, "a")) == [["A"]]
    thread = batcher._thread
    assert thread is not None
    del batcher
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_an_error_goes_to_its_batch_and_the_thread_goes_on(model: Model, batcher: MicroBatcher) -> None:
    for future in submit(batcher, "a", "bad"):
        with pytest.raises(RuntimeError, match="refused"):
            future.result(PATIENCE)
    assert results(submit(batcher, "b")) == [["B"]]


def test_a_request_that_was_cancelled_is_not_run(model: Model, batcher: MicroBatcher) -> None:
    model.go.clear()
    first = submit(batcher, "a")
    assert model.started.wait(PATIENCE)
    second, third = submit(batcher, "b", "c")
    assert second.cancel()
    model.go.set()
    assert results([*first, third]) == [["A"], ["C"]]
    assert model.batches == [["a"], ["c"]]


def test_a_task_that_was_cancelled_leaves_the_others_alone(model: Model, batcher: MicroBatcher) -> None:
    async def ask(text: str) -> list[str]:
        return await asyncio.wrap_future(batcher.submit([(text,)]))

    async def everything() -> list[object]:
        tasks = [asyncio.create_task(ask(text)) for text in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(everything())
    assert (first, third) == (["A"], ["C"])
    assert isinstance(second, asyncio.CancelledError)


def test_several_event_loops_share_one_batcher(model: Model, batcher: MicroBatcher) -> None:
    found: dict[str, list[str]] = {}

    def loop(text: str) -> None:
        async def ask() -> list[str]:
            return await asyncio.wrap_future(batcher.submit([(text,)]))

        found[text] = asyncio.run(ask())

    threads = [threading.Thread(target=loop, args=(text,)) for text in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == {text: [text.upper()] for text in "abcdef"}


def test_closing_answers_what_is_queued_and_refuses_the_rest(model: Model, batcher: MicroBatcher) -> None:
    model.go.clear()
    waiting = submit(batcher, "a", "b", "c", "d", "e", "f")
    assert model.started.wait(PATIENCE)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.go.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert [future.result(0) for future in waiting] == [["A"], ["B"], ["C"], ["D"], ["E"], ["F"]]
    with pytest.raises(ClosedError, match="this engine is closed"):
        batcher.submit([("g",)])
    batcher.close()


def test_closing_unused_starts_nothing(model: Model) -> None:
    before = threading.active_count()
    MicroBatcher(model, 4, 1).close()
    assert threading.active_count() == before


def test_the_first_waits_no_longer_than_it_must(model: Model) -> None:
    batcher = MicroBatcher(model, max_batch=1000, max_wait_ms=50)
    started = time.monotonic()
    assert results(submit(batcher, "a")) == [["A"]]
    assert time.monotonic() - started > 0.04
    batcher.close()


@pytest.mark.parametrize(("max_batch", "max_wait_ms"), [(0, 1), (1, -1), (1, float("nan"))])
def test_settings_that_cannot_be(model: Model, max_batch: int, max_wait_ms: float) -> None:
    with pytest.raises(ConfigError, match="max_batch must be 1 or more and max_wait_ms 0 or more; got"):
        MicroBatcher(model, max_batch, max_wait_ms)
