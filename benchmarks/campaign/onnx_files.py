"""ONNX files that were damaged or forged, given to `q8trt lint`, to the CPU runner and to the counter of a model's work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.children import in_child
from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.mutations import flipped, spliced, truncated
from q8trt.quantization.precision import Precision

TESTS = Path(__file__).resolve().parents[2] / "tests"
PRECISIONS = (Precision.INT8, Precision.FP32, Precision.INT8_FP16)
SECRET = b"\x11" * 65_536
_INTEGERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**33, 2**40, 2**62, 2**63 - 1, -(2**63))
_NAMES = ("", " ", "x" * 300, "\x1b[31m", "\u202e", "a\nb", "input_ids", "logits", "/dev/zero", "..", "\u0000")
_PLACES = (
    "../secret.bin", "/dev/zero", "/proc/self/mem", "", ".", "..", "link.bin", "circle.bin", "absent.bin", "x\u0000y", "n" * 300,
    "sub/../../secret.bin", "file:///etc/passwd", "*/_ORT_MEM_ADDR_/*", "./../secret.bin", "\\..\\secret.bin",
)  # fmt: skip


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield 588 files for each of the readers."""
    in_child(partial(make_models, base))
    for name, data in files(base, random):
        refused = name.startswith("external outside")
        for reader, call in (("lint", ("lint", "model.onnx")), ("run", partial(_run, name)), ("work", _count)):
            yield Case(
                f"{reader} {name}",
                call,
                partial(_write, data),
                _refused if refused else None,
                exits=(1, 2) if reader == "lint" and not refused else (2,),
                seconds=20,
                mib=768,
            )


def make_models(folder: Path) -> None:
    """Write a tiny BERT in each precision."""
    sys.path.insert(0, str(TESTS))
    from conftest import make_batch, make_model

    from q8trt.export.onnx import ExportOptions, export_onnx
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    recipe, plain = load_recipe("full"), make_model()
    quantized = make_model()
    insert_quantizers(quantized, recipe)
    calibrate(quantized, recipe, [make_batch(seed=seed) for seed in range(3)])
    names = ("input_ids", "attention_mask", "token_type_ids")
    for precision in PRECISIONS:
        model = quantized if precision.is_quantized else plain
        export_onnx(model, folder / f"{precision}.onnx", precision, names, ExportOptions("torchscript"))


def files(base: Path, random: Random) -> Iterator[tuple[str, bytes]]:
    """Yield 588 mutations, each with a name."""
    sound = {precision: (base / f"{precision}.onnx").read_bytes() for precision in PRECISIONS}
    for mutate, count in ((flipped, 90), (truncated, 36), (spliced, 60)):
        for number in range(count):
            precision = PRECISIONS[number % 3]
            yield f"{mutate.__name__}: {precision} {number}", mutate(sound[precision], random)
    for number in range(60):  # in the graph, not in the weights, which are most of the bytes
        precision = PRECISIONS[number % 3]
        yield f"without weights: {precision} {number}", _without_weights(sound[precision], random)
    structured = [*_MUTATIONS.items()]
    for number in range(342 - len(_FORGED) - 2 * len(_PLACES)):
        name, mutate_model = structured[number % len(structured)]
        precision = PRECISIONS[number // len(structured) % 3]
        yield f"{name}: {precision} {number}", _mutated(sound[precision], mutate_model, random)
    for number, place in enumerate(_PLACES):
        for location in ("initializer", "constant"):
            yield f"external outside: {location} {number}", _external(sound["fp32"], place, location)
    for name, forge in _FORGED.items():
        yield f"forged: {name}", forge()


def _write(data: bytes, folder: Path) -> None:
    """The model in a folder of its own name's kind, with what it may try to read."""
    (folder / "model.onnx").write_bytes(data)
    (folder / "weights.bin").write_bytes(SECRET)
    (folder.parent / "secret.bin").write_bytes(SECRET)
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "circle.bin").symlink_to("circle.bin")


def _refused(outcome: Outcome, folder: Path) -> str:
    return "a file outside the model's folder was read"


def _run(name: str, folder: Path) -> None:
    """Open the file as an engine does, and answer a batch."""
    import numpy as np

    from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

    precision = next((each for each in PRECISIONS if f" {each} " in name), Precision.FP32)
    runner = OnnxRuntimeRunner(folder / "model.onnx", precision, threads=1)
    arrays = {each: np.ones((2, 8), np.int32) for each in runner.input_names}
    logits = runner.infer(arrays)
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
        raise AssertionError(f"the logits are {type(logits).__name__}")


def _count(folder: Path) -> None:
    from q8trt.runtime.timing.work import work_of_onnx

    work_of_onnx(folder / "model.onnx")


def _without_weights(data: bytes, random: Random) -> bytes:
    """Change bytes of everything but the weights, and put those back."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.load_from_string(data)
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    changed = random.choice((flipped, spliced))(model.SerializeToString(), random)
    try:
        parsed = onnx.load_from_string(changed)
    except DecodeError:
        return changed
    parsed.graph.initializer.extend(tensors)
    return bytes(parsed.SerializeToString())


def _mutated(data: bytes, mutate: Callable[[Any, Random], None], random: Random) -> bytes:
    import onnx

    model = onnx.load_from_string(data)
    mutate(model, random)
    return bytes(model.SerializeToString())


def _node(model: Any, random: Random, *ops: str) -> Any:
    nodes = [node for node in model.graph.node if not ops or node.op_type in ops]
    return random.choice(nodes or list(model.graph.node))


def _tensor(model: Any, random: Random) -> Any:
    return random.choice(list(model.graph.initializer))


def _name(model: Any, random: Random) -> str:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return random.choice((*_NAMES, *random.sample(names, 8)))


def _change_dims(model: Any, random: Random) -> None:
    tensor = _tensor(model, random)
    dims = list(tensor.dims) or [1]
    dims[random.randrange(len(dims))] = random.choice(_INTEGERS)
    tensor.dims[:] = random.choice((dims, dims[1:], [*dims, 2**40], dims[::-1], []))


def _change_type(model: Any, random: Random) -> None:
    _tensor(model, random).data_type = random.choice((*range(30), 99, -1, 2**31 - 1))


def _change_raw(model: Any, random: Random) -> None:
    tensor = _tensor(model, random)
    data = tensor.raw_data or bytes(8)
    tensor.raw_data = random.choice((b"", data[:-1], data * 2, data[:1], b"\xff" * len(data)))


def _change_integer(model: Any, random: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    attribute = random.choice(random.choice(nodes).attribute)
    attribute.i = random.choice(_INTEGERS)
    if attribute.ints:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(_INTEGERS)


def _change_attribute(model: Any, random: Random) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    node = random.choice(nodes)
    change = random.randrange(4)
    if change == 0:
        del node.attribute[:]
    elif change == 1:
        node.attribute[0].type = random.randrange(15)
    elif change == 2:
        node.attribute[0].name = _name(model, random)
    else:
        node.attribute.extend([node.attribute[0]])


def _change_op(model: Any, random: Random) -> None:
    from onnx import defs

    ops = [schema.name for schema in defs.get_all_schemas() if schema.domain == ""]
    _node(model, random).op_type = random.choice((*ops, *ops, *_NAMES))


def _change_domain(model: Any, random: Random) -> None:
    _node(model, random).domain = random.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "trt", *_NAMES))


def _change_input(model: Any, random: Random) -> None:
    node = _node(model, random)
    inputs = list(node.input)
    random.choice(
        (
            lambda: inputs.append(_name(model, random)),
            lambda: inputs and inputs.pop(random.randrange(len(inputs))),
            lambda: inputs and inputs.__setitem__(random.randrange(len(inputs)), _name(model, random)),
            inputs.reverse,
            inputs.clear,
        )
    )()
    node.input[:] = inputs


def _change_output(model: Any, random: Random) -> None:
    node = _node(model, random)
    node.output[:] = random.choice(([], [""], [_name(model, random)], [*node.output, _name(model, random)]))


def _change_nodes(model: Any, random: Random) -> None:
    nodes = list(model.graph.node)
    node = random.choice(nodes)
    random.choice(
        (
            lambda: nodes.remove(node),
            lambda: nodes.append(node),
            lambda: random.shuffle(nodes),
            lambda: nodes.insert(0, nodes.pop()),
        )
    )()
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _change_values(model: Any, random: Random) -> None:
    value = random.choice([*model.graph.input, *model.graph.output])
    kind = value.type.tensor_type
    change = random.randrange(5)
    if change == 0:
        kind.elem_type = random.choice((*range(30), 99))
    elif change == 1 and kind.shape.dim:
        random.choice(list(kind.shape.dim)).dim_value = random.choice(_INTEGERS)
    elif change == 2:
        kind.ClearField("shape")
    elif change == 3:
        value.name = _name(model, random)
    else:
        value.type.Clear()
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1


def _change_opset(model: Any, random: Random) -> None:
    if random.random() < 0.5:
        model.opset_import[0].version = random.choice((*_INTEGERS, 6, 9, 12, 18, 22, 30))
    else:
        model.ir_version = random.choice((*_INTEGERS, 12, 30))


def _change_scale(model: Any, random: Random) -> None:
    """Scales or zero points of another number, type or value."""
    import numpy as np
    from onnx import numpy_helper

    names = {name for node in model.graph.node if "quantize" in node.op_type.lower() for name in node.input[1:]}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in names] or list(model.graph.initializer)
    tensor = random.choice(tensors)
    shape = random.choice(((), (0,), (1,), (3,), (32,), (33,), (64,), (1, 1), (32, 1), (2, 32)))
    value = random.choice((0.0, -1.0, 0.1, float("nan"), float("inf"), 1e-40, 7))
    kind = random.choice((np.float32, np.float32, np.float16, np.float64, np.int8, np.int32))
    with np.errstate(invalid="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(np.full(shape, value).astype(kind), tensor.name))


def _change_axis(model: Any, random: Random) -> None:
    from onnx import helper

    node = _node(model, random, "QuantizeLinear", "DequantizeLinear")
    others = [attribute for attribute in node.attribute if attribute.name != "axis"]
    del node.attribute[:]
    node.attribute.extend([*others, helper.make_attribute("axis", random.choice(_INTEGERS))])
    if random.random() < 0.3:
        node.attribute.append(helper.make_attribute("block_size", random.choice(_INTEGERS)))


def _change_metadata(model: Any, random: Random) -> None:
    del model.metadata_props[:]
    texts = ("", "{", "[" * 10_000, "null", "[1]", '{"a": 1e999}', '{"modules": 3}', "9" * 5000, '{"a": {"b": [null]}}')
    for key in ("kept_fp32", "modules", "precision", "\x1b]0;x"):
        model.metadata_props.add(key=key, value=random.choice(texts))


def _change_name(model: Any, random: Random) -> None:
    thing = random.choice((_node(model, random), _tensor(model, random), model.graph))
    thing.name = random.choice(_NAMES)


def _wrap(model: Any, random: Random) -> None:
    """Half of the graph goes into the branches of an If."""
    import onnx
    from onnx import helper

    nodes = list(model.graph.node)
    cut = random.randrange(1, len(nodes))
    inner, name = nodes[cut:], model.graph.output[0].name
    output = helper.make_tensor_value_info(f"{name}.inner", onnx.TensorProto.FLOAT, None)
    inner.append(helper.make_node("Identity", [name], [f"{name}.inner"]))
    body = helper.make_graph(inner, "body", [], [output])
    true = helper.make_tensor("always", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(true)
    op = random.choice(("If", "If", "Loop", "Scan"))
    node = helper.make_node(op, ["always"], [f"{name}.out"], then_branch=body, else_branch=body)
    if op != "If":
        node = helper.make_node(op, ["", "always"], [f"{name}.out"], body=body)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:cut], node, helper.make_node("Identity", [f"{name}.out"], [name])])


_MUTATIONS: dict[str, Callable[[Any, Random], None]] = {
    "dims": _change_dims, "type": _change_type, "raw": _change_raw, "integer": _change_integer,
    "attribute": _change_attribute, "op": _change_op, "domain": _change_domain, "input": _change_input,
    "output": _change_output, "nodes": _change_nodes, "value": _change_values, "opset": _change_opset,
    "scale": _change_scale, "axis": _change_axis, "metadata": _change_metadata, "name": _change_name, "wrap": _wrap,
}  # fmt: skip


def _external(data: bytes, place: str, location: str) -> bytes:
    """A tensor whose values are where they must not be."""
    import onnx
    from onnx import helper

    model = onnx.load_from_string(data)
    tensor = next(each for each in model.graph.initializer if len(each.dims) == 2)
    moved = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=1)
    moved.external_data.add(key="location", value=place)
    if location == "initializer":
        tensor.CopyFrom(moved)
    else:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, helper.make_node("Constant", [], [moved.name], value=moved))
    return bytes(model.SerializeToString())


def _small(nodes: Sequence[Any], *tensors: Any, inputs: int = 6, functions: Sequence[Any] = ()) -> bytes:
    """A file of these nodes: integers `input_ids` in, `logits` out."""
    from onnx import helper

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_ids", inputs, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", 1, None)],
        list(tensors),
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions).SerializeToString())


def _grown(op: str, *sizes: int) -> bytes:
    from onnx import helper

    shape = helper.make_tensor("shape", 7, [len(sizes)], sizes)
    inputs = ["shape"] if op == "ConstantOfShape" else ["one", "shape"]
    one = helper.make_tensor("one", 1, [1] * len(sizes), [1.0])
    return _small([helper.make_node(op, inputs, ["logits"])], shape, one)


def _nested(depth: int) -> bytes:
    from onnx import helper

    node = helper.make_node("Cast", ["input_ids"], ["logits"], to=1)
    output = helper.make_tensor_value_info("logits", 1, None)
    for _ in range(depth):
        body = helper.make_graph([node], "b", [], [output])
        node = helper.make_node("If", ["c"], ["logits"], then_branch=body, else_branch=body)
        if node.ByteSize() > 10**7:
            break
    return _small([node], helper.make_tensor("c", 9, [], [True]))


def _laughs(levels: int, cycle: bool = False) -> bytes:
    """Functions that each call the next one twice."""
    from onnx import helper

    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(levels):
        called = f"F{(level + 1) % levels if cycle else level + 1}"
        nodes = [
            helper.make_node(called, ["a"], ["b"], domain="own"),
            helper.make_node(called, ["b"], ["c"], domain="own"),
        ]
        functions.append(helper.make_function("own", f"F{level}", ["a"], ["c"], nodes, opsets))
    functions.append(
        helper.make_function("own", f"F{levels}", ["a"], ["c"], [helper.make_node("Relu", ["a"], ["c"])], opsets)
    )
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=1),
        helper.make_node("F0", ["x"], ["logits"], domain="own"),
    ]
    return _small(nodes, functions=functions)


def _many(count: int, op: str = "Relu", chain: bool = True) -> bytes:
    from onnx import helper

    nodes = [helper.make_node("Cast", ["input_ids"], ["t0"], to=1)]
    for number in range(count):
        nodes.append(helper.make_node(op, [f"t{number if chain else 0}"], [f"t{number + 1}"]))
    return _small([*nodes, helper.make_node("Identity", [f"t{count}"], ["logits"])])


def _quantizers(count: int) -> bytes:
    """One tensor with many equal quantizers."""
    from onnx import helper

    nodes = [helper.make_node("Cast", ["input_ids"], ["x"], to=1)]
    for number in range(count):
        nodes.append(helper.make_node("QuantizeLinear", ["x", "s", "z"], [f"q{number}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{number}", "s", "z"], [f"d{number}"]))
    nodes.append(helper.make_node("Sum", [f"d{number}" for number in range(count)], ["logits"]))
    scale, zero = helper.make_tensor("s", 1, [], [0.1]), helper.make_tensor("z", 3, [], [0])
    return _small(nodes, scale, zero)


def _sparse(size: int) -> bytes:
    import onnx
    from onnx import helper

    values = helper.make_tensor("w", 1, [1], [1.0])
    sparse = onnx.SparseTensorProto(values=values, indices=helper.make_tensor("i", 7, [1], [size - 1]), dims=[size])
    model = onnx.load_from_string(_small([helper.make_node("Identity", ["w"], ["logits"])]))
    model.graph.sparse_initializer.append(sparse)
    return bytes(model.SerializeToString())


def _huge_table(rows: int) -> bytes:
    """A table of many rows without a column, whose scales the CPU's graph would spell out row by row."""
    from onnx import helper

    table = helper.make_tensor("table", 3, [rows, 0], b"", raw=True)
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "s"], ["d"]),
        helper.make_node("Gather", ["d", "input_ids"], ["logits"]),
    ]
    return _small(nodes, table, helper.make_tensor("s", 1, [], [0.1]))


_FORGED: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"not a model at all" * 99,
    "zeros": lambda: bytes(100_000),
    "ConstantOfShape int8 2^40": lambda: _grown("ConstantOfShape", 2**40),
    "ConstantOfShape 2^33": lambda: _grown("ConstantOfShape", 2**11, 2**11, 2**11),
    "Expand 2^40": lambda: _grown("Expand", 2**40),
    "Tile 2^33": lambda: _grown("Tile", 2**33),
    "nested 12": lambda: _nested(12),
    "functions twice 40 deep": lambda: _laughs(40),
    "functions in a circle": lambda: _laughs(5, cycle=True),
    "functions 300 deep": lambda: _laughs(300),
    "100,000 nodes": lambda: _many(100_000),
    "15,000 Identity": lambda: _many(15_000, "Identity"),
    "9,000 Softmax": lambda: _many(9_000, "Softmax"),
    "19,000 readers": lambda: _many(19_000, chain=False),
    "9,000 quantizers": lambda: _quantizers(9_000),
    "sparse 2^40": lambda: _sparse(2**40),
    "sparse 2^20": lambda: _sparse(2**20),
    "int8 table of 2^33 rows": lambda: _huge_table(2**33),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("onnx_files", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
