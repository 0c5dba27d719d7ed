"""The result of each step, written to disk at once: a step that fails costs its own result and no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from q8trt.console.names import one_line
from q8trt.errors import Q8TRTError
from q8trt.reporting import Report

Value = TypeVar("Value")
_log = logging.getLogger(__name__)

#: "measured": a figure that nothing is asked of; "skipped": what it needs failed before or is not on this machine.
RESULTS = ("passed", "failed", "measured", "skipped")


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """The result of a step that ran.

    Attributes:
        figure: in words.
        passed: None if nothing is asked of the figure.
        details: the figures, JSON-ready, units in the keys.
        value: what later steps need.
    """

    figure: str
    passed: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)
    value: Value | None = None


@dataclass(frozen=True)
class CheckResult:
    """One line of the table; `result` is one of `RESULTS`, `figure` the reason where it failed or was skipped."""

    check: str
    result: str
    figure: str
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The results so far.

    Args:
        on_change: called after each step, to write and to print.
        hidden: text to leave out of messages, such as the temporary folder.

    Attributes:
        checks: one for each step, in order.
        reports: model name -> its figures.
        finished: whether all steps were gone through.
    """

    def __init__(self, on_change: Callable[[Journal], None] = lambda journal: None, hidden: str = "") -> None:
        self._on_change, self.hidden = on_change, hidden
        self.checks: list[CheckResult] = []
        self.reports: dict[str, Report] = {}
        self.finished = False

    @property
    def failed(self) -> bool:
        """True if a step failed."""
        return any(check.result == "failed" for check in self.checks)

    def attempt(self, name: str, step: Callable[[], Outcome[Value]], optional: bool = False) -> Value | None:
        """Run one step and note what came of it; None if it failed.

        Args:
            name: of the line.
            step: what to do. An error of q8trt is the step's result; any other is a defect, whose traceback is logged too.
            optional: an error of q8trt means that this machine lacks the means: skipped, not failed.
        """
        started = time.perf_counter()
        try:
            outcome = step()
        except Q8TRTError as error:
            self._note(name, "skipped" if optional else "failed", str(error), time.perf_counter() - started)
            return None
        except Exception as error:
            _log.exception("%s", name)
            self._note(name, "failed", f"{type(error).__name__}: {one_line(error)}", time.perf_counter() - started)
            return None
        result = {None: "measured", True: "passed", False: "failed"}[outcome.passed]
        self._note(name, result, outcome.figure, time.perf_counter() - started, outcome.details)
        return outcome.value

    def skip(self, name: str, reason: str) -> None:
        """Note a step that cannot be run."""
        self._note(name, "skipped", reason, 0.0)

    def finish(self) -> None:
        """Note that all steps were gone through."""
        self.finished = True
        self._on_change(self)

    def _note(self, name: str, result: str, figure: str, seconds: float, details: dict[str, Any] | None = None) -> None:
        text = figure.replace(self.hidden, "") if self.hidden else figure
        self.checks.append(CheckResult(name, result, text, round(seconds, 3), details or {}))
        self._on_change(self)
