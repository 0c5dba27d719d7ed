"""A small encoder made node by node, with every choice that the linter judges as an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN, VOCABULARY, INTERMEDIATE = 32, 50, 64
#: Tensors that can pass a Q/DQ pair.
SITES = ("table", "weight", "qkv", "q", "k", "softmax", "v", "context", "residual", "ffn", "gelu")


@dataclass(frozen=True)
class Options:
    """The options of the encoder; the defaults make a graph without faults."""

    layers: int = 2
    half: bool = True
    sites: tuple[str, ...] = SITES
    head_size: int = 16
    scale_at: str = "query"  # or "scores", "after quantizer"
    gather_first: bool = False
    tables: int = 1
    integers: Any = np.int8
    zero_point: int = 0
    scale: float = 0.05
    scale_type: Any = None
    computed_scale: bool = False
    per_tensor_weights: bool = False
    wrong_axis: bool = False
    activation_by_channel: bool = False
    float_weights: bool = False
    norm_input: bool = False
    mask_qdq: bool = False
    mask_value: float = -10000.0
    key_first: bool = False
    fused: bool = False
    smooth: bool = True
    decomposed: bool = False
    fp32_softmax: bool = False
    twice: bool = False
    extra: str = ""  # "dangling", "alone", "again", "again-other", "add"
    ids: int = TensorProto.INT32
    fixed: tuple[int, int] | None = None
    opset: int = 20
    names: bool = True


@dataclass
class _Maker:
    options: Options
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    count: int = 0

    @property
    def float(self) -> Any:
        return np.float16 if self.options.half else np.float32

    def const(self, value: Any, dtype: Any = None) -> str:
        self.count += 1
        name = f"c{self.count}"
        with np.errstate(over="ignore"):
            self.constants[name] = np.asarray(value).astype(dtype or self.float)
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        self.count += 1
        name = f"t{self.count}"
        label = f"{kind}_{self.count}" if self.options.names else ""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], label, domain=domain, **attributes))
        return name

    def parameters(self, length: int | None = None) -> tuple[str, str]:
        options = self.options
        shape = () if length is None else (length,)
        scale = self.const(np.full(shape, options.scale), options.scale_type)
        if options.computed_scale:
            scale = self.op("Div", scale, self.const(127, options.scale_type))
        return scale, self.const(np.full(shape, options.zero_point), options.integers)

    def qdq(self, tensor: str, site: str, force: bool = False) -> str:
        options = self.options
        if not (force or site in options.sites):
            return tensor
        by_channel = options.activation_by_channel and site in ("qkv", "ffn")
        scale, zero = self.parameters(HIDDEN if by_channel else None)
        axis = {"axis": 2} if by_channel else {}
        wide = options.scale_type is not None and options.half
        if wide and options.opset < 19:
            tensor = self.op("Cast", tensor, to=TensorProto.FLOAT)
        result = self.op(
            "DequantizeLinear", self.op("QuantizeLinear", tensor, scale, zero, **axis), scale, zero, **axis
        )
        return self.op("Cast", result, to=TensorProto.FLOAT16) if wide else result

    def weight(self, rows: int, columns: int) -> str:
        options = self.options
        values = np.random.default_rng(self.count).normal(0, 1, (rows, columns))
        if "weight" not in options.sites:
            return self.const(values)
        axis = 0 if options.wrong_axis else 1
        length = None if options.per_tensor_weights else (rows, columns)[axis]
        scale, zero = self.parameters(length)
        if options.float_weights:
            stored = self.op("QuantizeLinear", self.const(values), scale, zero, axis=axis)
        else:
            stored = self.const(
                np.clip(values * 20, 0 if options.integers == np.uint8 else -127, 127), options.integers
            )
        result = self.op("DequantizeLinear", stored, scale, zero, axis=axis)
        wide = options.scale_type is not None and options.half
        return self.op("Cast", result, to=TensorProto.FLOAT16) if wide else result

    def linear(self, tensor: str, rows: int, columns: int) -> str:
        product = self.op("MatMul", tensor, self.weight(rows, columns))
        return self.op("Add", product, self.const(np.zeros(columns)))

    def norm(self, tensor: str) -> str:
        gain, bias = self.const(np.ones(HIDDEN)), self.const(np.zeros(HIDDEN))
        if not self.options.decomposed:
            return self.op("LayerNormalization", tensor, gain, bias, axis=-1)
        center = self.op("Sub", tensor, self.op("ReduceMean", tensor, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", center, self.const(2)), axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.const(1e-3)))
        return self.op("Add", self.op("Mul", self.op("Div", center, root), gain), bias)

    def gelu(self, tensor: str) -> str:
        if not self.options.decomposed:
            return self.op("Gelu", tensor)
        erf = self.op("Erf", self.op("Div", tensor, self.const(2**0.5)))
        return self.op("Mul", self.op("Mul", tensor, self.op("Add", erf, self.const(1))), self.const(0.5))

    def residual(self, branch: str, skip: str) -> str:
        total = self.op("Add", *(self.qdq(self.smoothed(name, "Mul"), "residual") for name in (branch, skip)))
        total = self.smoothed(total, "Div")
        return self.norm(self.qdq(total, "norm", force=self.options.norm_input))

    def smoothed(self, tensor: str, op: str) -> str:
        return self.op(op, tensor, self.const(np.full(HIDDEN, 0.5))) if self.options.smooth else tensor

    def heads(self, tensor: str, order: tuple[int, ...]) -> str:
        size = self.options.head_size
        shape = self.const([0, 0, -1, size], np.int64)
        return self.op("Transpose", self.op("Reshape", tensor, shape), perm=order)

    def attention(self, hidden: str, mask: str) -> str:
        options = self.options
        width = HIDDEN if HIDDEN % options.head_size == 0 else options.head_size * 2
        fed = self.qdq(hidden, "qkv")
        if options.fused:
            both = self.linear(fed, HIDDEN, 3 * width)
            axis, ends = self.const([2], np.int64), [self.const([width * part], np.int64) for part in range(4)]
            query, key, value = (self.op("Slice", both, ends[part], ends[part + 1], axis) for part in range(3))
        else:
            query, key, value = (self.linear(fed, HIDDEN, width) for _ in range(3))
        factor = self.const(options.head_size**-0.5)
        query = self.heads(query, (0, 2, 1, 3))
        if options.scale_at == "query":
            query = self.op("Mul", query, factor)
        query = self.qdq(query, "q")
        if options.scale_at == "after quantizer":
            query = self.op("Mul", query, factor)
        if options.key_first:
            key = self.qdq(self.heads(key, (0, 2, 3, 1)), "k")
        else:
            key = self.op("Transpose", self.qdq(self.heads(key, (0, 2, 1, 3)), "k"), perm=(0, 1, 3, 2))
        scores = self.op("MatMul", query, key)
        if options.scale_at == "scores":
            scores = self.op("Mul", scores, factor)
        scores = self.op("Add", self.qdq(scores, "mask", force=options.mask_qdq), mask)
        if options.fp32_softmax:
            scores = self.op("Softmax", self.op("Cast", scores, to=TensorProto.FLOAT), axis=-1)
            scores = self.op("Cast", scores, to=TensorProto.FLOAT16)
        else:
            scores = self.op("Softmax", scores, axis=-1)
        value = self.qdq(self.heads(value, (0, 2, 1, 3)), "v")
        context = self.op("MatMul", self.qdq(scores, "softmax"), value)
        context = self.op("Reshape", self.op("Transpose", context, perm=(0, 2, 1, 3)), self.const([0, 0, -1], np.int64))
        return self.linear(self.qdq(context, "context"), width, HIDDEN)

    def embeddings(self) -> str:
        options = self.options
        if options.tables > 1:
            return self.op("Add", *(self.embedding() for _ in range(2)))
        return self.embedding()

    def embedding(self) -> str:
        options = self.options
        table = np.random.default_rng(0).normal(0, 1, (VOCABULARY, HIDDEN))
        if "table" not in options.sites:
            return self.op("Gather", self.const(table), "input_ids")
        integers = self.const(np.clip(table * 20, 0, 127), options.integers)
        scale, zero = self.parameters()
        if options.gather_first:
            return self.op("DequantizeLinear", self.op("Gather", integers, "input_ids"), scale, zero)
        return self.op("Gather", self.op("DequantizeLinear", integers, scale, zero), "input_ids")

    def mask(self) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.float))
        given = self.op("Cast", "attention_mask", to=kind)
        spread = self.op("Unsqueeze", given, self.const([1, 2], np.int64))
        return self.op("Mul", self.op("Sub", self.const(1), spread), self.const(self.options.mask_value))


def make_encoder(path: Path, **changes: Any) -> Path:
    """Write an encoder of `Options(**changes)` to `path`."""
    options = Options(**changes)
    make = _Maker(options)
    hidden, mask = make.embeddings(), make.mask()
    if options.scale_type is not None and options.half and "table" in options.sites:
        hidden = make.op("Cast", hidden, to=TensorProto.FLOAT16)
    hidden = make.norm(hidden)
    for _ in range(options.layers):
        hidden = make.residual(make.attention(hidden, mask), hidden)
        inner = make.gelu(make.linear(make.qdq(hidden, "ffn"), HIDDEN, INTERMEDIATE))
        if options.extra == "add":
            inner = make.op("Add", inner, make.op("Tanh", inner))
        if options.extra == "dangling":
            inner = make.op("Tanh", make.qdq(inner, "", force=True))
        if options.extra.startswith("again"):
            inner = make.qdq(inner, "", force=True)
            if options.extra == "again-other":
                make.options = Options(**{**changes, "scale": options.scale / 2})
        branch = make.linear(make.qdq(inner, "gelu"), INTERMEDIATE, HIDDEN)
        make.options = options
        if options.twice:  # the next layer's input, once more
            make.qdq(make.nodes[-1].output[0], "", force=True)
            branch = make.op("Sub", branch, make.linear(make.qdq(hidden, "ffn"), HIDDEN, HIDDEN))
        if options.extra == "alone":
            make.op("QuantizeLinear", branch, *make.parameters())
        hidden = make.residual(branch, hidden)
    first = make.op("Gather", hidden, make.const(0, np.int64), axis=1)
    make.nodes.append(helper.make_node("Gemm", [first, make.const(np.ones((HIDDEN, 1)))], ["logits"], "classifier"))
    shape = options.fixed or ("batch", "sequence")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(make.float))
    graph = helper.make_graph(
        make.nodes,
        "encoder",
        [helper.make_tensor_value_info(name, options.ids, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", kind, (shape[0], 1))],
        [numpy_helper.from_array(value, name) for name, value in make.constants.items()],
    )
    opsets = [helper.make_opsetid("", options.opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="test"), path)
    return path
