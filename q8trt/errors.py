"""The exceptions that q8trt raises for what a user can put right.

Each carries one line: what was wrong, what was expected, how to fix it. The command line prints that line on stderr
and exits with code 2; anything else that escapes is a defect of q8trt and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class Q8TRTError(Exception):
    """Root of q8trt's exceptions. ``str(error)`` is one line, fit for a terminal."""


class ConfigError(Q8TRTError):
    """An option, a configuration or a recipe has a value that cannot be used."""


class DataError(Q8TRTError):
    """A data set is missing, empty or malformed. Names the file and, if there is one, the line."""


class CheckpointError(Q8TRTError):
    """A model folder is missing, is not BERT-like, or does not match its recipe."""


class QuantizationError(Q8TRTError):
    """A quantizer cannot be placed, calibrated or exported. Names the site."""


class EngineError(Q8TRTError):
    """An engine folder cannot be built, is damaged, or does not match its manifest."""


class BackendError(Q8TRTError):
    """A backend (TensorRT, TensorRT-RTX, ONNX Runtime, CUDA) is absent or refused the work."""


class NotFiniteError(BackendError):
    """A model answered NaN or infinity, for example because an FP16 graph overflows on a text."""


class BusyError(Q8TRTError):
    """Another process writes the same run, engine folder or output. Names its pid."""


class MissingPackageError(BackendError):
    """An optional package is not installed.

    Attributes:
        problem: what is missing.
        command: the command that installs it.
    """

    def __init__(self, problem: str, command: str = "") -> None:
        super().__init__(f"{problem}: {command}" if command else problem)
        self.problem, self.command = problem, command


class InputError(Q8TRTError):
    """An input of an `Engine` that has no answer: an empty text, something other than text.

    Attributes:
        index: the position of the item in the list that was given; None if it is not about one item.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class PairError(InputError):
    """One text was given to a task of pairs, or a pair to a task of single texts."""


class ArrayError(InputError):
    """A token array is missing, or has a type, shape, device or values that the engine does not take."""


class ClosedError(Q8TRTError):
    """An `Engine` was used after it was closed."""


class InterruptedRunError(Q8TRTError):
    """Work was stopped by Ctrl-C (exit code 130) or SIGTERM (143) after its state was saved.

    After SIGTERM a `TerminatedError` is among the causes.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'STS-B'?)"`` for the known name nearest to `word`, or ``""`` when none is near."""
    from difflib import get_close_matches  # takes longer to import than all else that `import q8trt` needs

    names = {name.casefold(): name for name in known}
    match = get_close_matches(word.casefold(), names, n=1, cutoff=0.5)
    return f" (did you mean {names[match[0]]!r}?)" if match else ""
