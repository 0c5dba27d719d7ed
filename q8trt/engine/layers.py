"""The layers of a built engine, from either of the two reports of TensorRT.

Both need a plan built with ``ProfilingVerbosity.DETAILED``:

- JSON from `trt.EngineInspector`, which needs a deserialized engine and so a GPU. TensorRT 8 to 10 write a tensor's type
  into "Format/Datatype" ("Row major linear FP16 format"), 11 splits it into "Datatype" and "Format" ("Engine Inspector",
  and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x", in TensorRT's documentation).
- the message that begins with "Layers:" in the builder's VERBOSE log, with one line per layer. TensorRT-RTX 1.7 also writes
  it without a GPU.

The second was tested with tensorrt_rtx 1.7.1. The first follows NVIDIA's documentation and published samples, and was not tested
on a GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from q8trt.files import parse_json

LOG_PREFIX = "Layers:"
#: Types from narrow to wide. A kernel that reads several types computes in the widest.
TYPES = ("INT4", "FP4", "INT8", "FP8", "BF16", "FP16", "FP32")
_SPELLINGS = {
    "int4": "INT4", "fp4": "FP4", "int8": "INT8", "fp8": "FP8", "bf16": "BF16", "bfloat16": "BF16",
    "fp16": "FP16", "half": "FP16", "fp32": "FP32", "float": "FP32",
}  # fmt: skip
_TYPE_WORD = re.compile(rf"\b({'|'.join(_SPELLINGS)})\b", re.IGNORECASE)
_MATRIX_KINDS = re.compile(r"gemm|matrixmultiply|matmul|convolution|fullyconnected", re.IGNORECASE)
# Myelin names a generated kernel after its operations, up to four letters each: "__myl_FcAddMul_myl1_7". Long names end in "Etc".
_MYELIN_NAME = re.compile(r"__myl_([A-Za-z]+)_myl\d+_\d+$")
_MYELIN_MATRIX = {"Fc", "Gemm", "Bmm", "Conv"}
_MYELIN_MOVES = {"Move", "Tran", "Resh", "Slic", "Conc", "Repl", "Cast"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a layer: its type, one of TYPES, and its dims. The type is None for integers of shapes or if it is missing."""

    datatype: str | None
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer of an engine: one kernel, or one step of its schedule.

    Attributes:
        name: its name in TensorRT.
        kind: its "LayerType", such as "gemm", "kgen" (a generated kernel), "Reformat", "wait".
        inputs: activations that it reads.
        constants: weights that it reads.
        outputs: tensors that it writes.
        sources: names of the ONNX nodes that it computes, in whole or in part.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sources: frozenset[str]

    @property
    def _operations(self) -> set[str]:
        match = _MYELIN_NAME.match(self.name)
        return set(re.findall(r"[A-Z][a-z]+", match[1])) if match else set()

    @property
    def is_matrix(self) -> bool:
        """True if it multiplies matrices: a GEMM, a fused attention, a convolution."""
        is_named = bool(_MATRIX_KINDS.search(self.kind)) or self.name.startswith("_gemm")
        return is_named or self.is_attention or bool(self._operations & _MYELIN_MATRIX)

    @property
    def is_attention(self) -> bool:
        """True if it is a fused attention: both products and the softmax between them in one kernel."""
        return "mha" in f"{self.kind} {self.name.rpartition('/')[2]}".casefold()

    @property
    def is_reformat(self) -> bool:
        """True if it only moves or converts data: a Reformat layer, or a generated kernel with only such operations."""
        operations = self._operations
        return self.kind.casefold() == "reformat" or (bool(operations) and operations <= _MYELIN_MOVES)

    @property
    def precision(self) -> str | None:
        """The type it computes in, one of TYPES; None for steps of the schedule and for shapes.

        A matrix product computes in the wider type of its two operands, a fused attention in the widest of Q, K and V
        (its mask may be wider). Any other layer computes in the widest type that it reads, or writes if it reads none.
        """
        read = [tensor.datatype for tensor in self.inputs if tensor.datatype]
        if self.is_matrix and read:
            weights = [tensor for tensor in self.constants if tensor.datatype and _is_matrix_shape(tensor.dims)]
            if weights:
                largest = max(weights, key=lambda tensor: math.prod(tensor.dims))
                return _widest([read[0], largest.datatype])
            return _widest(sorted(read, key=TYPES.index)[:3] if self.is_attention else read[:2])
        return _widest(read or [tensor.datatype for tensor in self.outputs])


def _is_matrix_shape(dims: tuple[int, ...]) -> bool:
    """Return whether these are the dims of weights, and not of a bias or a scale.

    One dimension is the number of weights, as older inspectors report it.
    """
    return (len(dims) > 1 and sum(size > 1 for size in dims) > 1) or (len(dims) == 1 and dims[0] > 1)


def _widest(types: Iterable[str | None]) -> str | None:
    return max((each for each in types if each), key=TYPES.index, default=None)


def layers_of_inspector(text: str) -> list[Layer]:
    """Return the layers in the JSON of `EngineInspector.get_engine_information(LayerInformationFormat.JSON)`.

    Raises:
        ValueError: the text is not such JSON, or the plan was built without detailed layer information.
    """
    data = parse_json(text)
    entries = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise ValueError('the inspector\'s JSON has no list "Layers"')
    if not all(isinstance(entry, dict) and "LayerType" in entry for entry in entries):
        raise ValueError("the plan has only the names of its layers: it was not built with detailed layer information")
    return [_layer(entry) for entry in entries]


def layers_of_log(message: str) -> list[Layer]:
    """Return the layers in the builder's message that begins with LOG_PREFIX. Other lines of the message are skipped.

    Raises:
        ValueError: no line of the message describes a layer.
    """
    entries = []
    for line in message.split("\n"):  # not splitlines: the metadata contain control characters
        match = re.match(r"Name: (.*?), LayerType: ([^,]*),", line)
        if match:
            tensors = {key: _tensors(_section(line, key)) for key in ("Inputs", "Constants", "Outputs")}
            metadata = line.rpartition(", Metadata: ")[2]
            entries.append({"Name": match[1], "LayerType": match[2], "Metadata": metadata, **tensors})
    if not entries:
        raise ValueError("the builder's log has no layer information in a form known here")
    return [_layer(entry) for entry in entries]


def _section(line: str, key: str) -> str:
    """Return the text between the brackets of ``, Inputs: [ ... ]``; "" if the line has no such list."""
    start = line.find(f", {key}: [")
    if start < 0:
        return ""
    start += len(f", {key}: [")
    depth = 1
    for position in range(start, len(line)):
        depth += {"[": 1, "]": -1}.get(line[position], 0)
        if not depth:
            return line[start:position]
    return ""


def _tensors(section: str) -> list[dict[str, Any]]:
    tensors = re.finditer(r"Dimensions: \[([-\d,]*)\][^{}]*?Datatype: (\w+)", section)
    return [{"Dimensions": [int(size) for size in each[1].split(",") if size], "Datatype": each[2]} for each in tensors]


def _layer(entry: Mapping[str, Any]) -> Layer:
    constants = _listed(entry, "Constants")
    weights = entry.get("Weights")
    if isinstance(weights, dict) and weights.get("Count"):
        constants += (Tensor(_type(str(weights.get("Type", ""))), (_whole(weights["Count"]),)),)
    return Layer(
        name=str(entry.get("Name", "")),
        kind=str(entry["LayerType"]),
        inputs=_listed(entry, "Inputs"),
        constants=constants,
        outputs=_listed(entry, "Outputs"),
        sources=frozenset(re.findall(r"\[ONNX Layer: (.*?)\]", str(entry.get("Metadata", "")))),
    )


def _listed(entry: Mapping[str, Any], key: str) -> tuple[Tensor, ...]:
    """Return the tensors of one of a layer's lists. Raises `ValueError` if it is not a list of objects."""
    tensors = entry.get(key, [])
    if not isinstance(tensors, list) or not all(isinstance(each, dict) for each in tensors):
        raise ValueError(f'"{key}" of a layer is not a list of tensors')
    return tuple(map(_tensor, tensors))


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    datatype = str(entry.get("Datatype") or entry.get("Format/Datatype") or "")
    sizes = entry.get("Dimensions", [])
    if not isinstance(sizes, list):
        raise ValueError('"Dimensions" of a tensor is not a list')
    return Tensor(_type(datatype), tuple(map(_whole, sizes)))


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f"a size is {str(value)[:40]!r}, not a whole number")
    return value


def _type(text: str) -> str | None:
    match = _TYPE_WORD.search(text)
    return _SPELLINGS[match[1].casefold()] if match else None
