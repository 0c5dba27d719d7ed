"""The process of one step: ``python -m q8trt.gpu_check.prepared.worker REQUEST``, started by `schedule`.

It writes its result when the step ends. A Q8TRTError is also a result. Any other exception ends the process without a result.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from q8trt.errors import Q8TRTError
from q8trt.files import write_json
from q8trt.gpu_check.prepared.kit import Kind, read_kit
from q8trt.gpu_check.prepared.machine import open_machine
from q8trt.gpu_check.prepared.work import Place, do

#: Steps that need packages which this machine may lack.
OPTIONAL = (Kind.TORCH, Kind.ARRAYS)


@dataclass(frozen=True)
class Request:
    """A request to run one step.

    Attributes:
        folder: of the kit.
        results: the folder of the results; `answer` is the file for the result of this step.
        step: the step's name.
        machine: "module:class" of the `Machine`.
    """

    folder: str
    results: str
    answer: str
    step: str
    machine: str


@dataclass(frozen=True)
class StepResult:
    """The result of a step; `result` is one of `q8trt.gpu_check.journal.RESULTS`."""

    result: str
    figure: str
    seconds: float
    title: str = ""
    device: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Do the step of the request and write its result."""
    started = time.perf_counter()
    request = msgspec.json.decode(sys.argv[1], type=Request)
    logging.lastResort = None
    folder, results = Path(request.folder), Path(request.results)
    kit = read_kit(folder)
    step = kit.step(request.step)
    title = device = ""
    try:
        machine = open_machine(request.machine)
        title, device = machine.title, machine.device
        outcome = do(Place(kit, folder, results, machine), step)
        result = {None: "measured", True: "passed", False: "failed"}[outcome.passed]
        figure, details = outcome.figure, outcome.details
    except Q8TRTError as error:
        result, figure, details = "skipped" if step.kind in OPTIONAL else "failed", str(error), {}
    seconds = round(time.perf_counter() - started, 3)
    write_json(request.answer, msgspec.to_builtins(StepResult(result, figure, seconds, title, device, details)))


if __name__ == "__main__":
    main()
