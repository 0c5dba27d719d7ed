"""Stand-ins held to the real packages: no name that these lack, no arguments that their functions do not take."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any


def real(name: str) -> Any:
    """An installed module, else None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def signatures(function: Any) -> list[inspect.Signature]:
    """The signatures that pybind11 writes into a docstring, or those of a function of Cython."""
    found = re.findall(rf"^(?:\d+\. )?{function.__name__}\((.*)\) -> ", function.__doc__ or "", re.MULTILINE)
    return [_parsed(text) for text in found] or [inspect.signature(function)]


def _parsed(text: str) -> inspect.Signature:
    parameters, depth, start = [], 0, 0
    for position, letter in enumerate(f"{text},"):
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and not depth:
            name, _, rest = text[start:position].partition(":")
            kind, equals, _ = rest.partition(" = ")
            default = ... if equals else inspect.Parameter.empty
            word = inspect.Parameter(name.strip(), inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            parameters.append(word.replace(annotation=kind.strip()))
            start = position + 1
    return inspect.Signature(parameters)


_KINDS = {"str": str, "bool": bool, "tuple": tuple, "list": list, "typing_extensions.Buffer": (bytes, memoryview)}


def _takes(signature: inspect.Signature, arguments: tuple[Any, ...]) -> bool:
    try:
        bound = signature.bind(*arguments)
    except TypeError:
        return False
    for name, value in bound.arguments.items():
        kind = str(signature.parameters[name].annotation)
        if kind in _KINDS and not isinstance(value, _KINDS[kind]):
            return False
        if kind.endswith(".Dims") and not isinstance(value, tuple | list):
            return False
        if kind == "typing.SupportsInt" and not hasattr(value, "__int__"):
            return False
    return True


class Bound:
    """A stand-in whose every use is one that the real class or module allows.

    With `converts`, the real function is called as well, its answer ignored: types that it does not take raise TypeError, as
    they would on a GPU. Only for machines where all that it can do is to convert its arguments and to find no driver.
    """

    def __init__(self, fake: Any, owner: Any, converts: bool = False) -> None:
        self.__dict__.update(fake=fake, owner=owner, converts=converts)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.fake, name)
        if self.owner is None:
            return value
        assert hasattr(self.owner, name), f"{self.owner.__name__} has no {name}"
        if not inspect.ismethod(value):
            return value
        known = signatures(getattr(self.owner, name))
        assert known, f"{name} tells no signature"

        def called(*arguments: Any) -> Any:
            full = arguments if inspect.ismodule(self.owner) else (self.fake, *arguments)
            assert any(_takes(each, full) for each in known), f"{name}{arguments} fits none of {known}"
            if self.converts:
                getattr(self.owner, name)(*arguments)
            return value(*arguments)

        called.__name__ = name
        return called

    def __setattr__(self, name: str, value: Any) -> None:
        assert self.owner is None or hasattr(self.owner, name), f"{self.owner.__name__} has no {name}"
        setattr(self.fake, name, value)
