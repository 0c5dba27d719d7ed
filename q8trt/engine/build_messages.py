"""The request and the messages between the two processes of a build. Each message is one line of JSON."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from q8trt.engine.config import BuildConfig, PlanInfo


@dataclass(frozen=True)
class BuildFiles:
    """The absolute paths of the ONNX file to read and the plan to write."""

    onnx: str
    plan: str


@dataclass(frozen=True)
class BuildRequest:
    """The work of a building process. Without files, it only starts the builder.

    `log_levels`: logger -> level, for the loggers whose records the process forwards.
    """

    files: BuildFiles | None
    config: BuildConfig
    wants_progress: bool
    log_levels: dict[str, int]


class Progress(msgspec.Struct, frozen=True, tag=True):
    """A step of the build: `done` of `total` steps of a phase."""

    phase: str
    done: int
    total: int


class LogLine(msgspec.Struct, frozen=True, tag=True):
    """A record of a logger."""

    logger: str
    level: int
    text: str


class Started(msgspec.Struct, frozen=True, tag=True):
    """The end of a process whose builder started."""


class Built(msgspec.Struct, frozen=True, tag=True):
    """The end of a build that succeeded."""

    plan: PlanInfo


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The end by an error of q8trt: its class in `q8trt.errors`, and its message."""

    error: str
    text: str


class SystemFailure(msgspec.Struct, frozen=True, tag=True):
    """The end by an `OSError`."""

    number: int | None
    text: str
    file: str | None


class Defect(msgspec.Struct, frozen=True, tag=True):
    """The end by any other exception."""

    traceback: str


Message = Progress | LogLine | Started | Built | Refused | SystemFailure | Defect
