"""The files of a job never are its input, the engine's or the user's; one job writes an output at a time."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scoring_fixtures import ROWS, Job, write_real_engine
from waiting import PATIENCE, wait_until

from q8trt.errors import BusyError, ConfigError, DataError
from q8trt.files import exclusive
from q8trt.inference.files import ScoringConfig, score_file
from q8trt.inference.files.records import Records

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)
ROOT = Path(__file__).parents[1]
SIDE = (".rejected.csv", ".partial", ".rejected.partial", ".state.json")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(job: Job, source: Path | None = None, output: str = "out.csv", **options: bool) -> str:
    """The line of a job that must be refused and leave every file as it is."""
    before, job.source = contents(job.folder), source or job.source
    with pytest.raises((ConfigError, DataError, BusyError)) as error:
        job.run(output, **options)
    assert contents(job.folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_rejected_rows_of_the_output_are_no_input(job: Job, overwrite: bool) -> None:
    source = job.path(".rejected.csv")
    source.write_text(ROWS)
    line = refusal(job, source, overwrite=overwrite)
    assert f"needs the name {source} beside it, which is the input; give another --output" in line


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("ending", ["", *SIDE])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_written_name_is_a_link_to_the_input(
    job: Job, link: Callable[[Path, Path], None], ending: str, overwrite: bool
) -> None:
    link(job.source, job.path(ending))
    assert "which is the input" in refusal(job, overwrite=overwrite) or not ending


def test_the_input_may_be_a_link_to_a_written_name(job: Job) -> None:
    hidden = (".out.csv.lock", ".out.csv.state.json.abc.tmp", ".out.csv.state.json.abc.old", "out.csv.partial")
    for name in hidden:
        (job.folder / name).write_text(ROWS)
        source = job.folder / "link.csv"
        source.symlink_to(name)
        assert f"{name} beside it, which is the input" in refusal(job, source, overwrite=True)
        source.unlink()
        (job.folder / name).unlink()


@pytest.mark.parametrize("output", ["sub/../in.csv", "here/in.csv", "./in.csv"])
def test_the_output_is_the_input_by_another_path(job: Job, output: str) -> None:
    (job.folder / "sub").mkdir()
    (job.folder / "here").symlink_to(".")
    assert "is the input; give another name" in refusal(job, output=output, overwrite=True)


@pytest.mark.parametrize("output", ["engine/out.csv", "link/out.csv", "engine/deep/out.csv"])
def test_nothing_is_written_into_the_engine_folder(job: Job, output: str) -> None:
    (job.folder / "link").symlink_to("engine")
    assert "is inside the engine folder" in refusal(job, output=output)
    assert not (job.folder / "engine" / "deep").exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("ending", ["", *SIDE])
def test_no_written_name_is_a_link_to_a_file_of_the_engine(
    job: Job, link: Callable[[Path, Path], None], ending: str
) -> None:
    link(job.folder / "engine" / "manifest.json", job.path(ending))
    line = refusal(job, overwrite=True)
    assert "is a file of the engine" in line or (not ending and "ends in '.json'" in line)


@pytest.mark.parametrize("ending", SIDE)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_the_user_by_the_name_of_a_side_file_is_kept(job: Job, ending: str, overwrite: bool) -> None:
    job.path(ending).write_text("my own notes\n")
    line = refusal(job, overwrite=overwrite)
    assert line == f"{job.path(ending)} is not a file of q8trt predict; move it away, or give another --output"


@pytest.mark.parametrize("ending", SIDE)
def test_a_folder_by_the_name_of_a_side_file(job: Job, ending: str) -> None:
    job.path(ending).mkdir()
    assert "is not a file of q8trt predict; move it away" in refusal(job, overwrite=True)


def test_rejected_rows_of_an_earlier_job_need_overwrite_and_stay_until_the_end(job: Job) -> None:
    job.run()
    job.path().unlink()
    assert (
        "rejected.csv exists already, from an earlier job; move it away, or add --overwrite to replace it"
        in refusal(job)
    )
    old = job.path(".rejected.csv").read_bytes()
    job.stop(overwrite=True, chunk_rows=5)
    assert job.path(".rejected.csv").read_bytes() == old
    job.source.write_text("sentence1,sentence2\na,b\n")
    assert job.run(overwrite=True).rejected_file is None
    assert not job.path(".rejected.csv").exists()


def test_an_output_that_is_a_link_counts_as_what_it_points_to(job: Job) -> None:
    job.path().symlink_to("sub/real.csv")
    assert job.run().output == job.folder / "sub" / "real.csv"
    assert job.path().is_symlink()
    assert "real.csv exists" in refusal(job)
    job.run(overwrite=True)
    assert sorted(path.name for path in (job.folder / "sub").iterdir()) == ["real.csv", "real.csv.rejected.csv"]
    job.path().unlink()
    job.path().symlink_to("out.csv")
    assert "out.csv is not a regular file" in refusal(job, overwrite=True)
    loop = job.folder / "loop.csv"
    loop.symlink_to(loop)
    assert "loop.csv cannot be read" in refusal(job, loop, "other.csv")


def test_an_output_that_is_no_file(job: Job) -> None:
    os.mkfifo(job.path())
    assert "out.csv is not a regular file" in refusal(job, overwrite=True)


def test_an_output_in_a_folder_that_is_not_there_yet(job: Job) -> None:
    assert job.run("new/deep/out.csv").output.exists()
    refusal(job, output="in.csv/out.csv")


def test_inputs_that_are_no_files(job: Job) -> None:
    (job.folder / "folder.csv").mkdir()
    assert "folder.csv is a folder" in refusal(job, job.folder / "folder.csv")
    os.mkfifo(job.folder / "pipe.csv")
    assert "pipe.csv is not a regular file" in refusal(job, job.folder / "pipe.csv")
    (job.folder / "null.csv").symlink_to("/dev/null")
    assert "null.csv is not a regular file" in refusal(job, job.folder / "null.csv")


def test_an_input_that_cannot_be_read(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("q8trt.inference.files.records.Path.open", refuse)
    with pytest.raises(DataError, match=r"in\.csv cannot be read: Permission denied"):
        Records(job.source, ".csv")


@pytest.mark.parametrize("length", [231, 250, 300])
def test_names_that_are_too_long(job: Job, length: int) -> None:
    name = "n" * (length - 4) + ".csv"
    assert "is too long; give a name of 230 bytes or fewer" in refusal(job, output=f"new/{name}")
    assert not (job.folder / "new").exists()
    if length > 255:
        assert "cannot be read: File name too long" in refusal(job, job.folder / name)


def test_the_longest_name(job: Job) -> None:
    assert job.run("n" * 226 + ".csv").output.exists()
    assert not [path for path in job.folder.iterdir() if path.name.startswith(".")]


def test_one_job_at_a_time(job: Job) -> None:
    with exclusive(job.path()):
        assert f"out.csv is in use by process {os.getpid()}" in refusal(job)
    (job.folder / "link").symlink_to(".")
    with exclusive(job.folder / "link" / "out.csv"):
        assert "is in use by process" in refusal(job)
    job.run()


SLOW = """
import sys, time
from q8trt.inference import Engine
from q8trt.cli.main import run_command
predict = Engine.predict
Engine.predict = lambda self, items: time.sleep(0.1) or predict(self, items)
sys.exit(run_command("predict", sys.argv[1:]))
"""


def many(tmp_path: Path) -> list[str]:
    """The options of a job of 12 chunks."""
    lines = (f"{'a cat runs ' * (row % 4 + 1)}\t{'a dog' if row % 700 else ''}\n" for row in range(6000))
    (tmp_path / "in.tsv").write_text("sentence1\tsentence2\n" + "".join(lines))
    engine = write_real_engine(tmp_path / "engine")
    return ["--engine", str(engine), "--input", str(tmp_path / "in.tsv"), "--device", "cpu", "--output"]


def slow(arguments: list[str], **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options  # type: ignore[call-overload]
    )  # fmt: skip


def test_two_commands_and_one_output(tmp_path: Path, refused: Refused) -> None:
    arguments = many(tmp_path)
    output = tmp_path / "out.csv"
    with slow([*arguments, str(output)]) as first:
        wait_until((tmp_path / "out.csv.rejected.partial").exists, first)
        line = refused("predict", *arguments, str(output))
        again = refused("predict", *arguments, str(output), "--overwrite")
        _, err = first.communicate(timeout=PATIENCE)
    assert f"{output} is in use by process {first.pid} (-c); wait until it ends" in line
    assert "is in use by process" in again
    assert first.returncode == 0, err
    assert len(output.read_text().splitlines()) == 1 + 6000 - 9


def test_a_file_size_limit_keeps_what_is_done(tmp_path: Path) -> None:
    """``ulimit -f``: EFBIG, as on a file system's limit."""
    arguments = [*many(tmp_path), str(tmp_path / "out.csv")]
    limit = 100_000

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    with slow(arguments, preexec_fn=limited) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, err
    assert err.splitlines()[-1].startswith(f"predict: error: {tmp_path / 'out.csv.partial'}: File too large; ")
    assert err.endswith(" rows are kept, and the same command continues from there\n")
    with slow(arguments) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert "continuing after" in err
    with slow([*arguments[:-1], str(tmp_path / "whole.csv")]) as process:
        process.communicate(timeout=PATIENCE)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_full_disk_keeps_what_is_done(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from scoring_fixtures import StandIn

    job.run("whole.csv")
    real, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    config = ScoringConfig(job.source, job.path(), chunk_rows=4)
    monkeypatch.setattr("q8trt.inference.files.job._NOTE_SECONDS", 0.0)
    with pytest.raises(DataError, match=r"No space left on device; \d+ rows are kept, and the same command continues"):
        score_file(StandIn(job.folder / "engine"), config)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "fsync", real)
    assert job.run().resumed > 0
    assert job.results() == job.results("whole.csv")
