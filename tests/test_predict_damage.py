"""An unfinished job whose files were damaged or changed, or that was killed: one line, or the right output."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scoring_fixtures import ROWS, Job, forked

from q8trt.errors import ConfigError
from q8trt.inference.files import outputs
from q8trt.inference.files.journal import State, write_state

SHORT = "".join(f"{line}\n" for line in ROWS.splitlines()[:24])
FILES = (".state.json", ".partial", ".rejected.partial")


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; flushing to the disk takes most of a test's time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def stopped(tmp_path: Path) -> Job:
    job = Job(tmp_path)
    job.run("whole.csv")
    job.stop()
    return job


def changed(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> None:
    status = path.stat()
    path.write_bytes(change(bytearray(path.read_bytes())))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(data: bytearray, at: int, bit: int = 0) -> bytearray:
    data[at % len(data)] ^= 1 << bit
    return data


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.55, 0.8, 0.99])
@pytest.mark.parametrize("kind", ["flip", "cut", "digit", "zeros"])
def test_damage_is_one_line_and_never_another_output(stopped: Job, ending: str, place: float, kind: str) -> None:
    def damage(data: bytearray) -> bytes | bytearray:
        at = int(place * len(data))
        if kind == "digit":
            at = next((index for index in [*range(at, len(data)), *range(at)] if data[index] in b"0123456789"), at)
            return flip(data, at)
        return {"flip": flip(bytearray(data), at, 2), "cut": data[:at], "zeros": data[:at] + bytes(len(data) - at)}[
            kind
        ]

    changed(stopped.path(ending), damage)
    before = {path: path.read_bytes() for path in stopped.folder.glob("out*")}
    with pytest.raises(
        ConfigError,
        match=r"out\.csv\S* (is (damaged|of another|not a file|unfinished, and its job)|differs from its record)",
    ):
        stopped.run()
    assert before == {path: path.read_bytes() for path in stopped.folder.glob("out*")}
    if "--overwrite" in message(stopped):
        assert stopped.run(overwrite=True).resumed == 0
        assert stopped.results() == stopped.results("whole.csv")


@pytest.mark.parametrize("name", ["rows", "rejected", "truncated", "input_lines", "replaces", "finished"])
def test_the_journal_has_a_checksum(stopped: Job, name: str) -> None:
    """These fields are behind no other hash."""
    path = stopped.path(".state.json")
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, name: not state[name] if isinstance(state[name], bool) else state[name] + 1}))
    assert "out.csv.state.json is damaged; start over with --overwrite" in message(stopped)


def message(job: Job, **options: bool) -> str:
    with pytest.raises(ConfigError) as error:
        job.run(**options)
    return str(error.value)


def test_an_input_of_the_same_size_and_time_that_is_another(stopped: Job) -> None:
    changed(stopped.source, lambda data: data.replace(b"\nc", b"\ne", 1))
    assert "out.csv.partial is unfinished, and its job has another input" in message(stopped)
    stopped.run("new.csv")
    stopped.run(overwrite=True)
    assert stopped.results() == stopped.results("new.csv") != stopped.results("whole.csv")


def test_what_was_not_read_yet_may_change(stopped: Job) -> None:
    changed(stopped.source, lambda data: data[:-3] + b"8\n\n")
    stopped.run("new.csv")
    assert stopped.run().resumed > 0
    assert stopped.results() == stopped.results("new.csv") != stopped.results("whole.csv")


@pytest.mark.parametrize("ending", FILES[1:])
def test_bytes_that_the_journal_does_not_count_are_dropped(stopped: Job, ending: str) -> None:
    """A power cut leaves zeros, or nothing, where data were not yet on the disk."""
    with stopped.path(ending).open("ab") as file:
        file.write(bytes(5000))
    assert stopped.run().resumed > 0
    assert stopped.results() == stopped.results("whole.csv")


@pytest.mark.parametrize("ending", FILES[1:])
@pytest.mark.parametrize("bad", [1, 0])
def test_such_bytes_are_dropped_also_where_no_row_follows_them(tmp_path: Path, ending: str, bad: int) -> None:
    """All rows that are rejected came before the interruption, or there are none."""
    job = Job(tmp_path, "sentence1,sentence2\n" + ",b\n" * bad + "a,b\n" * 40)
    job.run("whole.csv")
    job.stop()
    with job.path(ending).open("ab") as file:
        file.write(bytes(5000))
    assert job.run().resumed > 0
    for name in ("", *[".rejected.csv"] * bad):
        assert job.path(name).read_bytes() == (job.folder / f"whole.csv{name}").read_bytes()
    assert {path.name for path in job.folder.glob("out*")} == {"out.csv", *["out.csv.rejected.csv"] * bad}


def test_killed_anywhere_the_same_command_gives_the_same_output(tmp_path: Path) -> None:
    """The campaign (benchmarks/campaign/scoring.py) kills at every line; this at some, the last ones closest."""
    job = Job(tmp_path, SHORT)
    job.run("whole.csv")
    lines = forked(job.run)
    step = lines // 12
    for line in [*range(1, lines - 60, step), *range(lines - 60, lines, 7)]:
        for path in job.folder.glob("*out.csv*"):
            path.unlink()
        assert forked(job.run, line) == 0, line
        if job.path(".state.json").exists() or not job.path().exists():
            job.run()
        assert job.results() == job.results("whole.csv"), line
        assert {path.name for path in job.folder.glob("*out.csv*")} - {".out.csv.lock"} == {
            "out.csv",
            "out.csv.rejected.csv",
        }


def test_killed_while_it_replaces_an_output(tmp_path: Path) -> None:
    """The old output stays until the new one is whole; then both names change, in either order of a crash."""
    job = Job(tmp_path, SHORT)
    job.run("whole.csv")
    job.run("old.csv", text_columns=("sentence2", "sentence1"))
    old = job.results("old.csv")

    def restore() -> None:
        for path in job.folder.glob("*out.csv*"):
            path.unlink()
        for ending in ("", ".rejected.csv"):
            shutil.copy(job.folder / f"old.csv{ending}", job.path(ending))

    restore()
    lines = forked(lambda: job.run(overwrite=True))
    for line in [*range(10, lines - 60, lines // 4), *range(lines - 60, lines, 6)]:
        restore()
        assert forked(lambda: job.run(overwrite=True), line) == 0
        assert job.results()[0] in (old[0], job.results("whole.csv")[0])
        job.run(overwrite=True)
        assert job.results() == job.results("whole.csv"), line


def test_killed_while_it_starts_over(stopped: Job, tmp_path: Path) -> None:
    """The files of a discarded job are still recognized as files of q8trt."""
    again = Job(tmp_path / "again")
    for line in range(5, 150, 5):
        shutil.copytree(stopped.folder, again.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("again"))
        assert forked(lambda: again.run(overwrite=True, chunk_rows=5), line) == 0
        again.run(overwrite=True, chunk_rows=5)
        again.path().unlink()
        again.path(".rejected.csv").unlink()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the names of open files")
def test_data_are_on_the_disk_before_the_journal_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, flushed = Job(tmp_path), {}

    def fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        flushed[path.name] = path.stat().st_size

    def write(path: Path, state: State) -> None:
        assert flushed.get("out.csv.partial", 0) == state.output_bytes
        assert flushed.get("out.csv.rejected.partial", 0) == state.rejected_bytes
        counted.append(state.rows)
        write_state(path, state)

    counted: list[int] = []
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(outputs, "write_state", write)
    job.run()
    assert len(counted) > 10


def test_an_output_that_appeared_meanwhile_is_kept(stopped: Job) -> None:
    stopped.path().write_text("mine")
    for overwrite in (False, True):
        assert "out.csv exists and is not an output of q8trt predict" in message(stopped, overwrite=overwrite)
        assert stopped.path().read_text() == "mine"
    stopped.path().write_text("text,score\n")
    assert "out.csv exists already; give another --output, or --overwrite to replace it" in message(stopped)
    assert stopped.run(overwrite=True).resumed > 0
    assert stopped.results() == stopped.results("whole.csv")


def test_an_output_that_appears_while_the_job_runs_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoring_fixtures import StandIn

    job, logits = Job(tmp_path), StandIn.logits
    job.run("whole.csv")

    def write(engine: StandIn, items: list[str]) -> list[float]:
        job.path().write_text("mine")
        return logits(engine, items)

    monkeypatch.setattr(StandIn, "logits", write)
    assert "out.csv exists and is not an output of q8trt predict" in message(job)
    assert job.path().read_text() == "mine"
    monkeypatch.undo()
    job.path().unlink()
    job.run()
    assert job.results() == job.results("whole.csv")


def test_overwrite_goes_on_with_the_same_job_and_starts_another_one_over(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run("whole.csv")
    job.run()
    job.stop(overwrite=True)
    assert job.results() == job.results("whole.csv")
    assert job.run(overwrite=True).resumed > 0
    job.stop(overwrite=True)
    assert job.run().resumed > 0, "without --overwrite as well: the first command said it"
    job.stop(overwrite=True)
    assert job.run(overwrite=True, chunk_rows=5).resumed == 0
