"""The Python-backend model of a Triton repository: texts in, scores, labels or embeddings out.

This file is copied into the repository and runs in the server, beside a copy of `q8trt.tasks.data.encoding`. It imports numpy,
tokenizers and the server's module, but not q8trt. It imports onnxruntime only if it runs the encoder itself. Its settings are
parameters of its config.pbtxt, as JSON (`q8trt.deployment.triton.model_config` writes them).

A request has the input ``text`` and, for a task of pairs, ``text_pair``: strings (rows, 1). The dynamic batcher passes several
requests at once. Their rows run through the encoder together, and each request gets a response with its rows, or an error.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

_SETTINGS = ("encoder", "inputs", "input_type", "buckets", "apart", "pad_token_id", "labels", "prompt", "activation", "threshold",
             "max_length", "truncation_side", "threads", "needs_vnni")  # fmt: skip
_ONNX_TYPES = {"TYPE_INT32": np.int32, "TYPE_INT64": np.int64}


class TextError(ValueError):
    """A request that cannot be answered. The client gets the message."""


class TritonPythonModel:
    """A model instance of the Python backend: a process that runs one batch at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the settings, the tokenizer and, if this model runs the encoder, its graph."""
        from tokenizers import Tokenizer

        config = json.loads(args["model_config"])
        settings = {name: json.loads(config["parameters"][name]["string_value"]) for name in _SETTINGS}
        if settings["needs_vnni"] and not _has_vnni():
            raise pb_utils.TritonModelException("the graph is for a CPU with VNNI; write the repository without --vnni")
        folder = Path(args["model_repository"]) / args["model_version"]
        self.names = [each["name"] for each in config["input"]]
        self.labels: list[str] = settings["labels"]
        #: The prompt before each text of an embedding model; None for other models.
        self.prompt: str | None = settings["prompt"]
        self.inputs: list[str] = settings["inputs"]
        self.type = _ONNX_TYPES[settings["input_type"]]
        self.buckets, self.apart, self.pad_token_id = settings["buckets"], settings["apart"], settings["pad_token_id"]
        self.activation: str = settings["activation"]
        #: The probability above which a text has a label; None if it has one label or a score.
        self.threshold: float | None = settings["threshold"]
        self.encoding = _module(folder / "encoding.py")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encoder: Any = self.encoding.Encoder(
            tokenizer, settings["max_length"], len(self.names) == 2, settings["truncation_side"]
        )
        if settings["encoder"]:
            self.encode: Any = TritonEncoder(settings["encoder"])
        else:
            instances = sum(group.get("count", 1) for group in config["instance_group"])
            self.encode = OnnxEncoder(folder / "model.onnx", settings["threads"] or (os.cpu_count() or 1) // instances)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response for each request: its answers, or an error for a request that cannot be answered."""
        rows: list[Any] = []
        spans: list[slice | TextError] = []
        for request in requests:
            try:
                added = self._rows(request)
                spans.append(slice(len(rows), len(rows) + len(added)))
                rows += added
            except TextError as error:
                spans.append(error)
        try:
            logits = self._logits(rows) if rows else np.empty((0, 1), np.float32)
        except pb_utils.TritonModelException as error:
            return [_failed(f"the encoder failed: {error}", pb_utils.TritonError.INTERNAL) for _ in requests]
        except self.encoding.EncodingError as error:
            return [_failed(f"the tokenizer failed: {error}", pb_utils.TritonError.INTERNAL) for _ in requests]
        return [
            _failed(str(span), pb_utils.TritonError.INVALID_ARG)
            if isinstance(span, TextError)
            else self._response(logits[span])
            for span in spans
        ]

    def _response(self, logits: np.ndarray) -> Any:
        """Return the response of a request with (rows, labels) logits: its answers, or an error if one is not finite."""
        if not np.isfinite(logits).all():
            message = "an answer of the encoder is NaN or infinite; build the engine at another precision"
            return _failed(message, pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(self._answer(logits))

    def _rows(self, request: Any) -> list[Any]:
        """Return the texts of a request: a tuple of one or two strings for each row.

        Raises:
            TextError: the inputs have different numbers of rows, or a text is empty or not UTF-8.
        """
        columns = []
        for name in self.names:
            texts = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
            columns.append([_text(text, name, index) for index, text in enumerate(texts)])
        if len({len(column) for column in columns}) != 1:
            counts = " and ".join(f"{len(column)} in {name}" for name, column in zip(self.names, columns, strict=True))
            raise TextError(f"expected the same number of texts in each input, got {counts}")
        return list(zip(*columns, strict=True))

    def _logits(self, rows: list[Any]) -> np.ndarray:
        """Return the logits of `rows` in order, float32 (rows, labels).

        With `apart`, the rows of each bucket run separately, because time depends on the number of tokens (on a CPU). Otherwise,
        all rows run in the bucket of the longest, because a call costs more than the padding (on a GPU).
        """
        encoded = self.encoder.encode(
            [tuple(self.prompt + text for text in row) for row in rows] if self.prompt else rows
        )
        lengths = np.array([len(ids) for ids in encoded.ids])
        buckets = np.array(self.buckets)[np.searchsorted(self.buckets, lengths if self.apart else lengths.max())]
        buckets = np.broadcast_to(buckets, lengths.shape)
        logits: Any = None
        for bucket in np.unique(buckets):
            indices = np.flatnonzero(buckets == bucket)
            part = self.encode({name: self._padded(name, encoded, indices, bucket) for name in self.inputs})
            logits = np.empty((len(rows), part.shape[1]), np.float32) if logits is None else logits
            logits[indices] = part
        return logits

    def _padded(self, name: str, encoded: Any, indices: np.ndarray, length: int) -> np.ndarray:
        """Return the model input `name` of the rows at `indices`, padded to (rows, length)."""
        array = np.full((len(indices), length), self.pad_token_id if name == "input_ids" else 0, self.type)
        for target, index in zip(array, indices, strict=True):
            ids = encoded.ids[index]
            values = {"input_ids": ids, "attention_mask": 1, "token_type_ids": encoded.type_ids[index]}
            target[: len(ids)] = values[name]
        return array

    def _answer(self, logits: np.ndarray) -> list[Any]:
        """Return the outputs for logits (rows, labels): ``score``, ``embedding``, or ``label`` and ``probabilities``.

        A multi-label classifier returns ``labels`` instead of ``label``: a JSON list of the labels above the threshold.
        """
        if self.prompt is not None:
            return [pb_utils.Tensor("embedding", logits)]
        if not self.labels:
            return [pb_utils.Tensor("score", sigmoid(logits) if self.activation == "sigmoid" else logits)]
        if self.threshold is not None:
            probabilities = sigmoid(logits)
            sets = [
                [name for name, value in zip(self.labels, row, strict=True) if value > self.threshold]
                for row in probabilities.tolist()
            ]
            texts = np.array([[json.dumps(names, ensure_ascii=False)] for names in sets], dtype=object).reshape(-1, 1)
            return [pb_utils.Tensor("labels", texts), pb_utils.Tensor("probabilities", probabilities)]
        wide = logits.astype(np.float64)
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        names = np.array([[self.labels[index]] for index in logits.argmax(axis=1)], dtype=object)
        return [pb_utils.Tensor("label", names), pb_utils.Tensor("probabilities", probabilities)]


class TritonEncoder:
    """The encoder as another model of this server, called by business logic scripting."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)

    def __call__(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Return the logits, float32 (rows, labels). Raises TritonModelException with the encoder's error."""
        request = pb_utils.InferenceRequest(
            model_name=self.model_name,
            requested_output_names=["logits"],
            inputs=[pb_utils.Tensor(name, array) for name, array in arrays.items()],
            preferred_memory=self.memory,
        )
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        return np.asarray(pb_utils.get_output_tensor_by_name(response, "logits").as_numpy(), np.float32)


class OnnxEncoder:
    """The encoder in this process, on the CPU with ONNX Runtime."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # only errors, because its warnings are about nodes of the graph
        options.intra_op_num_threads = max(1, threads)
        # Spinning threads would slow other instances and the server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Return the logits, float32 (rows, labels). Raises TritonModelException with ONNX Runtime's error."""
        try:
            return np.asarray(self.session.run(["logits"], arrays)[0], np.float32)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise pb_utils.TritonModelException(str(error)) from error


def _module(path: Path) -> Any:
    """Import the file `path` as a module."""
    spec = importlib.util.spec_from_file_location(f"q8trt_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise pb_utils.TritonModelException(f"{path} is not a Python file; write the repository again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses needs the module there
    spec.loader.exec_module(module)
    return module


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the float32 sigmoid of logits. Large logits do not overflow."""
    powers = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1 / (1 + powers), powers / (1 + powers)).astype(np.float32)


def _has_vnni(cpuinfo: str = "/proc/cpuinfo") -> bool:
    flags = Path(cpuinfo).read_text(encoding="utf-8").split()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _text(value: Any, name: str, index: int) -> str:
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise TextError(f"{name}[{index}] is not UTF-8") from None
    if not text.strip():
        raise TextError(f"{name}[{index}] is empty; leave such rows out")
    return text


def _failed(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
