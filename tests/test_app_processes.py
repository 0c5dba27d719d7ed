"""An engine across forks, and one that is dropped without being closed."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from waiting import PATIENCE

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("torch", reason="torch, the reference, is not installed")
from app_fixtures import REGRESSION, engine_folder

from q8trt import Engine
from q8trt.inference.pool import RunnerPool

FORK = """
import asyncio, gc, os, sys
from q8trt import ClosedError, Engine

folder, how = sys.argv[1:]
engine = Engine.load(folder, device="cpu", threads=2)
pair = ("a plane", "an air plane")
before = engine.predict([pair])
if how == "apredict":
    before = [asyncio.run(engine.apredict(pair))]
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    assert engine.predict([pair]) == before
    engine.close()
    sys.exit(os.waitstatus_to_exitcode(status))
for use in (lambda: engine.predict([pair]), lambda: asyncio.run(engine.apredict(pair)), lambda: engine.run({})):
    try:
        use()
    except ClosedError as error:
        print(error)
engine.close()
with Engine.load(folder, device="cpu", threads=2) as again:
    assert again.predict([pair]) == before
    assert [asyncio.run(again.apredict(pair))] == before
del engine
gc.collect()
sys.stdout.flush()
os._exit(0)  # as multiprocessing ends a child: ONNX Runtime, once imported, hangs in the exit handlers of C
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_folder(tmp_path_factory.mktemp("processes") / "engine", REGRESSION)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("how", ["predict", "apredict"])
def test_an_engine_refuses_to_run_in_a_forked_process(folder: Path, how: str) -> None:
    """No use hangs, nor does dropping the copy; the child can load an engine of its own, and the parent goes on."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(folder), how], capture_output=True, text=True, timeout=PATIENCE, env=environment,
        check=False,
    )  # fmt: skip
    line = (
        "this engine was opened before this process was forked, and cannot run here; load it again: Engine.load(folder)"
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, [line] * 3), done.stderr


def test_an_engine_that_is_dropped_unclosed_ends_its_thread(folder: Path) -> None:
    engine = Engine.load(folder, device="cpu")
    asyncio.run(engine.apredict(("a", "b")))
    threads = [thread for thread in threading.enumerate() if thread.name == "q8trt-microbatch"]
    dropped, pool = weakref.ref(engine), weakref.ref(engine._pool)
    assert len(threads) == 1
    del engine
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    gc.collect()
    assert dropped() is None
    assert pool() is None


class Runner:
    """A runner that notes when it is closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_dropped_pool_is_closed_by_the_last_batch_under_way() -> None:
    runner = Runner()
    pool = RunnerPool([runner], shared=True)  # type: ignore[list-item]
    with pool.runner():
        pool.close(wait=False)
        assert not runner.closed
    assert runner.closed
