"""Run one case of bad input and judge how it ended; see the package's docstring for an example of an area."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

#: How a case may end. The first two are right.
KINDS = ("ok", "refused", "unclear", "traceback", "crash", "hang", "memory", "wrong", "damaged")
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|Exception ignored in|panicked at|Fatal Python error")
_ERROR_LINE = re.compile(r"[\w-]+(?: [\w-]+)?: (error: |stopped by )\S.*")
#: Control characters, except tab and newline: what a name from a file may do to a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Process:
    """A case that runs as a real process (``python -m q8trt ...``) and not as a fork.

    Attributes:
        command: the whole command; () for ``python -m q8trt`` with the case's arguments.
        env: variables that differ; None removes one.
        limits: resource -> soft and hard limit, as ``{resource.RLIMIT_FSIZE: 4096}``.
        signal: what is sent after `after` seconds; None: nothing.
        closed: descriptors that are closed when the process starts, such as (0,) or (1, 2).
    """

    command: Sequence[str] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[int, int] = field(default_factory=dict)
    signal: int | None = None
    after: float = 0
    closed: Sequence[int] = ()


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Attributes:
        code: the exit code; minus the signal's number where one ended the process, None where the driver did.
        stopped: "hang" or "memory" where the driver ended it, else "".
        mib: peak resident memory above that of the process it was forked from.
    """

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    mib: float
    stopped: str = ""


@dataclass(frozen=True)
class Case:
    """One piece of bad input and the command that gets it.

    Attributes:
        name: unique in its area; the part before the first colon or digit groups the results.
        call: arguments of ``q8trt``, or a function of the case's folder (called in the child with that folder as the current
            one; an exception of q8trt is a refusal, any other a traceback).
        setup: makes the case's files in its empty folder. It runs in the driver: no torch there.
        oracle: called when the command succeeded; returns what is wrong with its answer, "" when it is right.
        writes: globs of relative paths that the command may make or replace when it succeeds; all else must stay as it was.
        leaves: globs of what a command may leave behind that does not succeed, such as the checkpoints of a training.
        prepare: called in the fork before the command, for limits and mounts.
        process: how to run it as a real process.
        exits: exit codes of a refusal.
        expect: the only right ending, "ok" or "refused"; an area needs a sound case, or all may be refused for another reason.
        seconds: time limit.
        mib: limit of resident memory above the start.
    """

    name: str
    call: Sequence[str] | Callable[[Path], Any]
    setup: Callable[[Path], Any] | None = None
    oracle: Callable[[Outcome, Path], str] | None = None
    writes: Sequence[str] = ()
    leaves: Sequence[str] = ()
    prepare: Callable[[Path], Any] | None = None
    process: Process | None = None
    exits: Sequence[int] = (1, 2)
    expect: str = ""
    seconds: float = 30
    mib: int = 1024


@dataclass(frozen=True)
class Verdict:
    """The verdict on a case: one of `KINDS`, why, and the remarks on stderr beside the line of the error."""

    case: str
    kind: str
    reason: str
    warnings: Sequence[str] = ()


def run_case(case: Case, folder: Path) -> tuple[Verdict, Outcome]:
    """Run `case` in `folder`, which is empty, and judge it."""
    from benchmarks.campaign.children import run_forked, run_process

    if case.setup:
        case.setup(folder)
    before = snapshot(folder)
    outcome = run_process(case, folder) if case.process else run_forked(case, folder)
    verdict = judge(case, outcome, before, folder)
    if case.expect and verdict.kind in ("ok", "refused") and verdict.kind != case.expect:
        verdict = replace(verdict, kind="wrong", reason=f"expected {case.expect}, {verdict.kind}: {verdict.reason}")
    return verdict, outcome


def judge(case: Case, outcome: Outcome, before: Mapping[str, str], folder: Path) -> Verdict:
    """Return how `case` ended; `before` is the `snapshot` of its folder."""
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.fullmatch(line)]
    warnings = tuple(line for line in lines if line not in errors)

    def verdict(kind: str, reason: str) -> Verdict:
        return Verdict(case.name, kind, reason, warnings)

    last = lines[-1] if lines else ""
    if outcome.stopped:
        return verdict(outcome.stopped, f"ended after {outcome.seconds:.1f} s with {outcome.mib:.0f} MiB")
    if _TRACEBACK.search(outcome.stderr + outcome.stdout):
        return verdict("traceback", last)
    if outcome.code is not None and outcome.code < 0 and outcome.code not in case.exits:
        return verdict("crash", f"signal {-outcome.code}; {last}")
    if control := _CONTROL.search(outcome.stdout + outcome.stderr):
        return verdict("wrong", f"the terminal gets the control character {control[0]!r}")
    if damage := _damage(case, outcome, before, snapshot(folder)):
        return verdict("damaged", damage)
    if outcome.code == 0:
        problem = case.oracle(outcome, folder) if case.oracle else ""
        return verdict("wrong", problem) if problem else verdict("ok", "")
    return _refusal(case, outcome, errors, verdict)


def _refusal(case: Case, outcome: Outcome, errors: Sequence[str], verdict: Callable[[str, str], Verdict]) -> Verdict:
    if outcome.code not in case.exits:
        return verdict(
            "unclear", f"exit code {outcome.code}, expected 0 or {list(case.exits)}: {outcome.stderr[-200:]!r}"
        )
    silent = not outcome.stderr.strip() and (bool(outcome.stdout.strip()) if outcome.code == 1 else outcome.code != 2)
    if len(errors) == 1 or silent:  # a check that failed may say so on stdout; a signal may end a command in silence
        return verdict("refused", errors[0] if errors else "")
    return verdict("unclear", f"exit code {outcome.code} with {len(errors)} lines of error: {outcome.stderr[-300:]!r}")


def _damage(case: Case, outcome: Outcome, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Describe the first file that was changed, removed or left behind without leave; "" if there is none."""

    globs = case.writes if outcome.code == 0 else case.leaves

    def allowed(name: str) -> bool:
        return any(fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}/*") for glob in globs)

    for name, state in before.items():
        if after.get(name) != state and not allowed(name):
            return f"{name} was {'changed' if name in after else 'removed'}"
    for name in after.keys() - before.keys():
        if not allowed(name):
            return f"{name} was left behind"
    return ""


def snapshot(folder: Path) -> dict[str, str]:
    """Return relative path -> content (its hash, a link's target, or the kind of file) of all that is in `folder`."""
    state = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            state[path.relative_to(folder).as_posix()] = _content(path)
    return state


def _content(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {path.readlink()}"
    if not stat.S_ISREG(mode):
        return stat.filemode(mode)[0]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_area(area: str, cases: Callable[..., Any], argv: Sequence[str] | None = None) -> int:
    """Run all cases of an area, store its results and print them; returns 1 where a case ended badly.

    Args:
        area: its name in the results.
        cases: a function of a folder for what all cases share, and of a seeded `random.Random`; yields `Case`.
        argv: ``--seed``, ``--only TEXT``, ``--limit N``, ``--verbose``, ``--keep DIR``; default: those of the process.
    """
    from benchmarks.campaign.run import run

    return run(area, cases, argv)
