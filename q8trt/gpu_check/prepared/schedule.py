"""The schedule of a prepared check: the most valuable steps first, in separate processes, within a budget."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from q8trt.console.children import end_of, import_paths, last_words, python_module
from q8trt.errors import ConfigError
from q8trt.files import MalformedError, decode, exclusive, read_json
from q8trt.gpu_check.journal import RESULTS, CheckResult
from q8trt.gpu_check.prepared import page
from q8trt.gpu_check.prepared.kit import Kind, Kit, Step
from q8trt.gpu_check.prepared.machine import GPU
from q8trt.gpu_check.prepared.worker import Request, StepResult

NOT_REACHED = "not reached"
#: A step is stopped after this multiple of its estimate, or this many seconds if that is more, so that the others still run.
_PATIENCE, _LEAST_PATIENCE_S = 3.0, 20.0


@dataclass
class Progress:
    """The results so far.

    Attributes:
        checks: the results of the steps so far, in the order of the kit.
        seconds: since the start.
        title, device: the library that ran the engines, and the device; "" until a step reports them.
    """

    budget_s: float
    checks: list[CheckResult] = field(default_factory=list)
    seconds: float = 0.0
    title: str = ""
    device: str = ""
    finished: bool = False

    @property
    def failed(self) -> bool:
        """True if a step failed."""
        return any(check.result == "failed" for check in self.checks)

    @property
    def counts(self) -> dict[str, int]:
        """Result -> number of steps."""
        return {each: sum(check.result == each for check in self.checks) for each in (*RESULTS, NOT_REACHED)}


def run_kit(
    kit: Kit,
    folder: Path,
    results: Path,
    budget_s: float,
    provenance: dict[str, Any],
    on_message: Callable[[str], object],
    machine: str = GPU,
    clock: Callable[[], float] = time.monotonic,
    resume: bool = False,
) -> Progress:
    """Run the steps of a kit, and write `results` after each.

    A step begins only if its estimate fits the remaining budget. Otherwise it is "not reached", and a shorter step may follow. A
    step is also "not reached" if none of its engines was. A step that runs longer than three times its estimate (at least 20 s),
    or past the budget, is stopped and counts as failed.

    Args:
        kit: the kit in `folder`.
        folder: of the kit.
        results: the folder of ``gpu-check.json``, ``gpu-check.html`` and the builder's plans, layers and logs.
        budget_s: seconds for all steps.
        provenance: of the results.
        on_message: called with a line before the first step, and one after each.
        machine: "module:class" of the `Machine`.
        clock: seconds, monotonic.
        resume: keep the steps of an earlier call that passed or were measured, with their plans; run the others.

    Raises:
        ConfigError: the folder of results has other files of these names, is the kit's folder, or cannot be resumed.
        BusyError: another check writes there.
    """
    if results.resolve() == folder.resolve():
        raise ConfigError(f"--output_dir {results} is the prepared folder; give another")
    started, progress = clock(), Progress(budget_s)
    with exclusive(results):
        page.check_folder(results)
        earlier = _earlier(results, kit, progress) if resume else {}
        on_message(
            f"{len(kit.steps)} steps, {sum(step.estimate_s for step in kit.steps):.0f} s, budget {budget_s:.0f} s"
        )
        for number, step in enumerate(kit.steps):
            left = budget_s - (clock() - started)
            check = earlier.get(step.name) or _attempt(kit, folder, results, number, step, left, machine, progress)
            progress.checks.append(check)
            progress.seconds = round(clock() - started, 1)
            page.write_json(results, progress, kit, provenance)
            on_message(f"{'kept' if step.name in earlier else check.result:11} {check.check}: {check.figure}")
        progress.finished = True
        page.write_json(results, progress, kit, provenance)
        with contextlib.suppress(ImportError):  # the page needs jinja2
            page.write_html(results, progress, kit, provenance)
    return progress


def _earlier(results: Path, kit: Kit, progress: Progress) -> dict[str, CheckResult]:
    """Return the steps of an earlier call that passed or were measured and still have their plans. They do not run again."""
    earlier = page.read_results(results, kit)
    progress.title, progress.device = earlier.title, earlier.device
    builds = [step for step in kit.steps if step.kind is Kind.BUILD]
    lost = {step.name for step in builds if not kit.engine(step.engines[0]).plan(results).is_file()}
    done = {name: check for name, check in earlier.checks.items() if check.result in ("passed", "measured")}
    return {name: check for name, check in done.items() if name not in lost}


def _attempt(
    kit: Kit, folder: Path, results: Path, number: int, step: Step, left: float, machine: str, progress: Progress
) -> CheckResult:
    """Return the result of a step, or the reason why it was not reached."""
    if step.kind not in (Kind.BUILD, Kind.TORCH):
        done = {check.check: check.result for check in progress.checks}
        builds = [each for each in kit.steps if each.kind is Kind.BUILD and each.engines[0] in step.engines]
        if all(done.get(each.name) in (NOT_REACHED, "skipped") for each in builds):
            return CheckResult(step.name, NOT_REACHED, "none of its engines was reached")
    if step.estimate_s > left:
        return CheckResult(step.name, NOT_REACHED, f"takes {step.estimate_s:.0f} s, {max(left, 0):.0f} s were left")
    limit = min(left, max(_PATIENCE * step.estimate_s, _LEAST_PATIENCE_S))
    path = results / "steps" / f"{number:02}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    started = time.monotonic()
    ending = _in_child(Request(str(folder), str(results), str(path), step.name, machine), limit)
    seconds = round(time.monotonic() - started, 3)
    try:
        result = decode(StepResult, read_json(path))
    except (OSError, MalformedError):
        return CheckResult(step.name, "failed", ending, seconds)
    progress.title, progress.device = result.title or progress.title, result.device or progress.device
    return CheckResult(step.name, result.result, result.figure, seconds, result.details)


def _in_child(request: Request, limit_s: float) -> str:
    """Run the process of a step to its end, or stop it after `limit_s`; return how it ended, in words."""
    command = python_module("q8trt.gpu_check.prepared.worker", msgspec.json.encode(request).decode())
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=import_paths()
        )
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
        finally:
            child.kill()
            child.wait()
        return f"{end_of(code)}{last_words(stderr)}"
