"""Unfinished jobs of `q8trt predict` whose files were damaged or changed, and jobs that were killed at any line.

The engine is a stand-in that computes nothing. Every case scores once more: it gives the bytes of a job that was never
interrupted, or it is refused in one line and leaves all files as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.mutations import flipped, json_mutations, spliced, truncated

TESTS = Path(__file__).resolve().parents[2] / "tests"
#: The files of an unfinished job.
_FILES = (".state.json", ".partial", ".rejected.partial")
_WRITES = ("*out.csv*",)
Change = Callable[[bytes], bytes]


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield some 2,300 jobs."""
    sys.path.insert(0, str(TESTS))
    from scoring_fixtures import ROWS, Job, forked

    os.fsync = _no_flush  # a killed process loses nothing that it wrote, and flushing takes most of a case's time
    job = Job(base / "stopped")
    job.run("whole.csv")
    job.stop()
    for ending in _FILES:
        data = job.path(ending).read_bytes()
        for mutate, count in ((flipped, 100), (truncated, 50), (spliced, 75)):
            for number in range(count):
                changed = mutate(data, random)
                yield from _damaged(
                    f"{ending[1:]} {mutate.__name__}: {number}", job.folder, ending, changed, number % 4 == 0
                )
    document = json.loads(job.path(".state.json").read_text())
    for name, changed in json_mutations(document, random, 150):
        yield from _damaged(f"journal {name}", job.folder, ".state.json", changed, False)
    for number in range(75):
        yield _other_input(number, job.folder, flipped(job.source.read_bytes(), random))
    short = Job(base / "short", "".join(f"{line}\n" for line in ROWS.splitlines()[:24]))
    short.run("whole.csv")
    shutil.copytree(short.folder, base / "counted")
    lines = forked(Job(base / "counted").run)
    for line in range(1, lines):
        yield _killed(f"killed: line {line}", short.folder, line, {})
        if line % 6 == 0:
            yield _killed(f"killed, then a power cut: line {line}", short.folder, line, {}, random.randbytes(100))
        if line % 4 == 0:
            yield _killed(f"killed while it replaces an output: line {line}", short.folder, line, {"overwrite": True})


def _no_flush(handle: Any) -> None:
    pass


def _damaged(name: str, stopped: Path, ending: str, data: bytes, overwrite: bool) -> Iterator[Case]:
    def setup(folder: Path) -> None:
        _copy(stopped, folder)
        (folder / f"out.csv{ending}").write_bytes(data)

    yield Case(name, _score, setup, _is_whole, writes=_WRITES, seconds=20)
    if overwrite:
        yield Case(
            f"{name}, --overwrite", partial(_score, overwrite=True), setup, _is_whole, writes=_WRITES, seconds=20
        )


def _other_input(number: int, stopped: Path, data: bytes) -> Case:
    """A bit of the input is another one, and its size and time are the same."""

    def setup(folder: Path) -> None:
        _copy(stopped, folder)
        times = (folder / "in.csv").stat()
        (folder / "in.csv").write_bytes(data)
        os.utime(folder / "in.csv", ns=(times.st_atime_ns, times.st_mtime_ns))

    def oracle(_: Outcome, folder: Path) -> str:
        _score(folder, "whole.csv", overwrite=True)
        return _is_whole(_, folder)

    return Case(f"input flipped: {number}", _score, setup, oracle, writes=_WRITES, seconds=20)


def _killed(name: str, short: Path, line: int, options: dict[str, bool], tail: bytes = b"") -> Case:
    def setup(folder: Path) -> None:
        from scoring_fixtures import Job, forked

        _copy(short, folder)
        if options:
            for ending in ("", ".rejected.csv"):
                shutil.copy2(folder / f"whole.csv{ending}", folder / f"out.csv{ending}")
        forked(partial(Job(folder).run, **options), line)
        state = folder / "out.csv.state.json"
        finished = state.exists() and json.loads(state.read_text())["finished"]  # then all data are on the disk
        for ending in _FILES[1:] if tail and not finished else ():
            if (path := folder / f"out.csv{ending}").exists():
                with path.open("ab") as file:
                    file.write(tail)

    def call(folder: Path) -> None:
        # Behind the last rename there is nothing left to do, and the same command says that the output is there.
        if options or (folder / "out.csv.state.json").exists() or not (folder / "out.csv").exists():
            _score(folder, **options)

    return Case(name, call, setup, _is_whole, writes=_WRITES, exits=(), seconds=20)


def _score(folder: Path, output: str = "out.csv", **options: bool) -> None:
    from scoring_fixtures import Job

    Job(folder).run(output, **options)


def _is_whole(_: Outcome, folder: Path) -> str:
    for ending in ("", ".rejected.csv"):
        if (folder / f"out.csv{ending}").read_bytes() != (folder / f"whole.csv{ending}").read_bytes():
            return f"out.csv{ending} is not that of a job that was never interrupted"
    left = [f"out.csv{ending}" for ending in _FILES if (folder / f"out.csv{ending}").exists()]
    return f"{left[0]} was left behind" if left else ""


def _copy(source: Path, folder: Path) -> None:
    """Copy with times: the time of the input is part of the journal."""
    shutil.copytree(source, folder, dirs_exist_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("scoring", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
