"""The results of the steps. Each is written to disk immediately, so a failed step does not affect other results."""

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

#: "measured" is a figure without a requirement; "skipped" means that a needed step failed or a package is missing.
RESULTS = ("passed", "failed", "measured", "skipped")


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """The result of a step that ran.

    Attributes:
        figure: the figure, as text.
        passed: whether the figure meets its requirement; None if it has none.
        details: the figures, JSON-ready, with units in the keys.
        value: a value for later steps.
    """

    figure: str
    passed: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)
    value: Value | None = None


@dataclass(frozen=True)
class CheckResult:
    """One line of the table. `result` is one of `RESULTS`; for a failed or skipped step `figure` is the reason."""

    check: str
    result: str
    figure: str
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The results so far.

    Args:
        on_change: called after each step, to write and to print.
        hidden: text to remove from messages, such as the temporary folder.

    Attributes:
        checks: one for each step, in order.
        reports: model name -> its figures.
        finished: whether all steps are done.
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
        """Run one step and record its result; return its value, or None if it failed.

        Args:
            name: name of the step.
            step: the work. A Q8TRTError is the result of the step. Any other exception is a defect, and its traceback is
                also logged.
            optional: whether a Q8TRTError means that this machine lacks a requirement. The step is then skipped, not failed.
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
        """Record a step that cannot run."""
        self._note(name, "skipped", reason, 0.0)

    def finish(self) -> None:
        """Record that all steps are done."""
        self.finished = True
        self._on_change(self)

    def _note(self, name: str, result: str, figure: str, seconds: float, details: dict[str, Any] | None = None) -> None:
        text = figure.replace(self.hidden, "") if self.hidden else figure
        self.checks.append(CheckResult(name, result, text, round(seconds, 3), details or {}))
        self._on_change(self)
