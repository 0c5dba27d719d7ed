"""The exceptions that q8trt raises for problems that a user can fix.

Each has one line: the problem, the expected value and the remedy. The command line prints this line on stderr and exits with
code 2, or with 130 or 143 for `InterruptedRunError`. `q8trt.cli.failures` explains errors of libraries and the system.
"""

from __future__ import annotations

from collections.abc import Iterable


class Q8TRTError(Exception):
    """Base class of q8trt's exceptions. ``str(error)`` is one line that is safe to print on a terminal."""


class ConfigError(Q8TRTError):
    """An option, a configuration or a recipe has a value that cannot be used."""


class DataError(Q8TRTError):
    """A data set is missing, empty or malformed, or a batch does not fit. A message on a file names it and its line."""


class CheckpointError(Q8TRTError):
    """A model folder is missing, is not BERT-like, or does not match its recipe."""


class QuantizationError(Q8TRTError):
    """A quantizer cannot be placed, calibrated or exported. The message names the site."""


class EngineError(Q8TRTError):
    """An engine folder cannot be built, is damaged, or does not match its manifest."""


class BackendError(Q8TRTError):
    """A backend (TensorRT, TensorRT-RTX, ONNX Runtime, CUDA, torch) is missing or refused the work."""


class NotFiniteError(BackendError):
    """A model answered NaN or infinity, for example because an FP16 graph overflows on a text."""


class BusyError(Q8TRTError):
    """Another process writes the same run, engine folder or output. The message names its process id."""


class MissingPackageError(BackendError):
    """An optional package is not installed.

    Attributes:
        problem: what is missing.
        command: the command that installs it; "" if none is known.
    """

    def __init__(self, problem: str, command: str = "") -> None:
        super().__init__(f"{problem}: {command}" if command else problem)
        self.problem, self.command = problem, command


class InputError(Q8TRTError):
    """An input of an `Engine` that has no answer: an empty text, something other than text.

    Attributes:
        index: the position of the item in the list that the caller passed; None if the error is not about one item.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class PairError(InputError):
    """An input is one text for a task of pairs, or a pair for a task of single texts."""


class ArrayError(InputError):
    """A token array is missing, or has a type, shape, device or values that the engine does not accept."""


class ClosedError(Q8TRTError):
    """An `Engine` was used after it was closed, or in a process that was forked after it was opened."""


class InterruptedRunError(Q8TRTError):
    """Work was stopped by Ctrl-C (exit code 130) or SIGTERM (143) after its state was saved.

    After SIGTERM a `TerminatedError` is among the causes.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'STS-B'?)"`` with the known name nearest to `word`, or ``""`` if none is near.

    Names that contain all words of `word` come first: ``--epochs`` suggests ``--num_train_epochs``.
    """
    from difflib import get_close_matches  # slow to import, and needed only here

    plain = {name.casefold().strip("-"): name for name in known}
    typed = word.casefold().strip("-")
    parts = set(_words(typed))
    matches = [name for name in plain if parts and len(typed) > 2 and parts <= set(_words(name))]
    matches = matches or get_close_matches(typed, plain, n=1, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(plain[name]) for name in matches[:2])}?)" if matches else ""


def _words(name: str) -> list[str]:
    return name.replace("-", " ").replace("_", " ").split()
