"""A stand-in for Triton's `triton_python_backend_utils`: q8trt/deployment/triton/model.py runs in a test's process."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    """An error of a response."""

    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message, self.code = message, code

    def message(self) -> str:
        return self._message


class TritonModelException(Exception):
    """Raised by a model."""


class InferenceResponse:
    """Outputs, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.outputs, self._error = {each.name(): each.as_numpy() for each in output_tensors}, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError:
        assert self._error is not None
        return self._error


class InferenceRequest:
    """A call of another model; `models` holds what answers in its place."""

    models: dict[str, Callable[[dict[str, np.ndarray]], InferenceResponse]] = {}  # noqa: RUF012

    def __init__(
        self, model_name: str, requested_output_names: list[str], inputs: list[Tensor], preferred_memory: Any
    ) -> None:
        assert requested_output_names == ["logits"]
        assert preferred_memory == ("cpu", 0)
        self.model_name, self.inputs = model_name, {each.name(): each.as_numpy() for each in inputs}

    def exec(self) -> InferenceResponse:
        return self.models[self.model_name](self.inputs)


class Request:
    """A request as the server passes it to `execute`: arrays of bytes (rows, 1) by name."""

    def __init__(self, **texts: Sequence[str | bytes]) -> None:
        raw = {
            name: [each if isinstance(each, bytes) else each.encode() for each in all] for name, all in texts.items()
        }
        self.inputs = {name: np.array(all, dtype=object).reshape(-1, 1) for name, all in raw.items()}


def request_of(items: Sequence[Any]) -> Request:
    """A request of texts, or of pairs of texts."""
    if isinstance(items[0], str):
        return Request(text=items)
    return Request(text=[item[0] for item in items], text_pair=[item[1] for item in items])


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module q8trt.deployment.triton.model, imported beside the fake; monkeypatch takes both away again."""
    fake: Any = ModuleType("triton_python_backend_utils")
    for each in (Tensor, TritonError, TritonModelException, InferenceResponse, InferenceRequest):
        setattr(fake, each.__name__, each)
    fake.TRITONSERVER_MEMORY_CPU, fake.PreferredMemory = "cpu", lambda kind, number: (kind, number)
    fake.get_input_tensor_by_name = lambda request, name: Tensor(name, request.inputs[name])
    fake.get_output_tensor_by_name = lambda response, name: Tensor(name, response.outputs[name])
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(InferenceRequest, "models", {})
    monkeypatch.delitem(sys.modules, "q8trt.deployment.triton.model", raising=False)
    module = importlib.import_module("q8trt.deployment.triton.model")
    monkeypatch.setitem(sys.modules, "q8trt.deployment.triton.model", module)
    return module


def parse_config(path: Path) -> Any:
    """A config.pbtxt as tritonclient's own ModelConfig message; skips where tritonclient is not installed."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


def model_arguments(model: Path) -> dict[str, str]:
    """Return the arguments of `initialize` for the model in this folder of a repository."""
    from google.protobuf import json_format

    config = json_format.MessageToDict(parse_config(model / "config.pbtxt"), preserving_proto_field_name=True)
    return {"model_config": json.dumps(config), "model_repository": str(model), "model_version": "1"}
