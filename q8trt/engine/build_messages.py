"""The request and the messages between the two processes of a build: each message is one line of JSON."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from q8trt.engine.config import BuildConfig, PlanInfo


@dataclass(frozen=True)
class BuildRequest:
    """The work of a building process; `log_levels` are those of the loggers that it forwards."""

    onnx: str
    plan: str
    config: BuildConfig
    wants_progress: bool
    log_levels: dict[str, int]


class Progress(msgspec.Struct, frozen=True, tag=True):
    """A step of the build."""

    phase: str
    done: int
    total: int


class LogLine(msgspec.Struct, frozen=True, tag=True):
    """A line of a logger."""

    logger: str
    level: int
    text: str


class Built(msgspec.Struct, frozen=True, tag=True):
    """The end of a build that succeeded."""

    plan: PlanInfo


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The end by an error of q8trt: its class in `q8trt.errors`, and its line."""

    error: str
    text: str


class SystemFailure(msgspec.Struct, frozen=True, tag=True):
    """The end by an `OSError`."""

    number: int | None
    text: str
    file: str | None


class Defect(msgspec.Struct, frozen=True, tag=True):
    """The end by an exception that nobody expected."""

    traceback: str


Message = Progress | LogLine | Built | Refused | SystemFailure | Defect
