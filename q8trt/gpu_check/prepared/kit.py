"""The files and steps of a prepared check: ``kit.json`` and the files that it names."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from q8trt.engine.shapes import Shape, ShapeProfile
from q8trt.errors import ConfigError
from q8trt.files import MalformedError, decode, read_json, write_json
from q8trt.lint import Site
from q8trt.quantization.precision import Precision

KIT_FILE = "kit.json"
FORMAT = 2


@dataclass(frozen=True)
class Rows:
    """Rows to compare logits on.

    Attributes:
        file: an .npz with ``<input>.<number>`` (batch, sequence) int32, one number per batch, ``logits.<name>`` (rows, outputs)
            and, for a model with real weights, ``labels`` (rows,), both float32 in the order of the batches' rows.
        reference: the name of the ``logits`` of the torch model that the engine was exported from.
        largest, mean: the absolute difference that is allowed; None if it is measured without a limit.
    """

    file: str
    reference: str
    largest: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class EngineFile:
    """An ONNX file from which a plan is built.

    Attributes:
        name: such as "bert-base INT8+FP16".
        model: such as "bert-base".
        onnx: the file, relative to the kit's folder.
        precision: of the file.
        profiles: the optimization profiles of the plan.
        inputs: the inputs, in the model's order.
        weights, attention_width: the model's work, see `q8trt.runtime.timing.work.Work`; 0 if it is not known.
        sites: the linter's forecast.
        rows: rows to compare logits on; None for none.
    """

    name: str
    model: str
    onnx: str
    precision: Precision
    profiles: tuple[ShapeProfile, ...]
    inputs: tuple[str, ...]
    weights: int = 0
    attention_width: int = 0
    sites: tuple[Site, ...] = ()
    rows: Rows | None = None

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.casefold())

    def plan(self, results: Path) -> Path:
        """Return the path of its plan in a folder of results. The step that builds the plan writes this file."""
        return results / "plans" / f"{self.slug}.plan"


class Kind(StrEnum):
    """The kinds of steps."""

    BUILD = "build"  # one engine: build it, inspect it, compare and score its logits
    LATENCY = "latency"  # several engines, interleaved, at each shape
    THREADS = "threads"  # one engine shared by eight threads
    ARRAYS = "arrays"  # one engine on arrays of torch and CuPy, without copies
    LOADS = "loads"  # one engine, loaded again and again
    BUCKETS = "buckets"  # several engines on the rows of the first, with length buckets and without
    TORCH = "torch"  # torch FP16 on the architecture of one engine, with random weights, for reference


@dataclass(frozen=True)
class Step:
    """One step, a separate process on the GPU machine.

    Attributes:
        name: unique.
        kind: the kind of work.
        engines: names of its engines.
        estimate_s: the estimated seconds, including the start of its process.
        shapes: (batch, sequence) to run.
        iterations: timed iterations of each shape, or the number of loads.
    """

    name: str
    kind: Kind
    engines: tuple[str, ...]
    estimate_s: float
    shapes: tuple[Shape, ...] = ()
    iterations: int = 0


@dataclass(frozen=True)
class Kit:
    """All that a prepared check needs.

    Attributes:
        engines: the engines, each built once.
        steps: the most valuable first; the step that builds an engine comes before those that use it.
        provenance: of the preparation, with its commit, because the GPU machine may have no checkout.
        format: version of the file's format.
    """

    engines: tuple[EngineFile, ...]
    steps: tuple[Step, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def engine(self, name: str) -> EngineFile:
        """Return the engine of a name."""
        return next(each for each in self.engines if each.name == name)

    def step(self, name: str) -> Step:
        """Return the step of a name."""
        return next(each for each in self.steps if each.name == name)

    @property
    def digest(self) -> str:
        """The SHA-256 of the whole kit, with its provenance."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    def write(self, folder: Path) -> None:
        """Write ``kit.json`` to a folder."""
        write_json(folder / KIT_FILE, asdict(self))


def read_kit(folder: Path) -> Kit:
    """Read the kit of a folder.

    Raises:
        ConfigError: the kit is missing, damaged or of another version, or lacks a file, an engine or unique step names.
    """
    path = folder / KIT_FILE
    try:
        kit = decode(Kit, read_json(path))
    except OSError as error:
        raise ConfigError(
            f"{folder} is not a prepared check ({KIT_FILE}: {error.strerror or error}); make one: q8trt gpu-check --prepare DIR"
        ) from None
    except MalformedError as error:
        raise ConfigError(f"{path} is damaged: {error}; prepare the check again") from None
    if kit.format != FORMAT:
        raise ConfigError(f"{path} has format {kit.format}, this q8trt reads {FORMAT}; prepare the check again")
    names = {each.name for each in kit.engines}
    unknown = {name for step in kit.steps for name in step.engines} - names
    files = [each.onnx for each in kit.engines] + [each.rows.file for each in kit.engines if each.rows]
    missing = [name for name in files if not (folder / name).is_file()]
    if unknown or missing or len({step.name for step in kit.steps}) < len(kit.steps):
        lacks = (
            f"the engine {min(unknown)}"
            if unknown
            else f"the file {missing[0]}"
            if missing
            else "unique names of its steps"
        )
        raise ConfigError(f"{folder} lacks {lacks}; prepare the check again")
    return kit
