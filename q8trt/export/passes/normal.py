"""Passes that bring the graph of either exporter to one normal form, with constants instead of shape arithmetic."""

from __future__ import annotations

import ast
import json
from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from q8trt.export.graph import (
    FACTOR,
    MODULES,
    SCOPE,
    attribute,
    constant,
    make,
    new_constant,
    nodes,
    only_reader,
    power_of_two,
    producer,
    remove,
    replace,
)

#: Metadata of a node: a Python list of the modules that it was traced from, the outermost first, and of its own name.
TORCH_SCOPES = "pkg.torch.onnx.name_scopes"


def note_scopes(model: ir.Model) -> int:
    """Record the torch module of each node as its only metadata. The exporters store the module in different ways."""
    for node in model.graph:
        if (text := node.metadata_props.get(TORCH_SCOPES)) is not None:
            modules = ast.literal_eval(text)[:-1]  # outermost first; the last is the node itself
            scope = modules[-1] if modules else ""
        else:
            # "/model/bert/encoder/layer.0/Add" -> "model.bert.encoder.layer.0"
            scope = (node.name or "").rpartition("/")[0].strip("/").replace("/", ".")
        node.metadata_props.clear()
        node.metadata_props[SCOPE] = "" if scope == "model" else scope.removeprefix("model.")
    return 0


def lift_constants(model: ir.Model) -> int:
    """Turn Constant nodes into initializers, and remove Identity nodes, unused nodes and unused initializers.

    Return the number of nodes that are gone.
    """
    before = len(model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return before - len(model.graph)


def transpose_constants(model: ir.Model) -> int:
    """Replace the Transpose of a constant by a constant: torch stores weights as (out, in), MatMul reads (in, out).

    A weight that several layers share stays one constant.
    """
    changed, transposed = 0, dict[tuple[ir.Value, tuple[int, ...]], ir.Value]()
    for node in nodes(model.graph, "Transpose"):
        array = constant(node.inputs[0])
        if array is None:
            continue
        permutation = tuple(attribute(node, "perm", tuple(reversed(range(array.ndim)))))
        key = node.inputs[0], permutation
        if key not in transposed:
            transposed[key] = new_constant(model.graph, f"{node.inputs[0].name}.T", array.transpose(permutation))
        replace(node.outputs[0], transposed[key])
        changed += 1
    return changed


def gemm_to_matmul(model: ir.Model) -> int:
    """Replace Gemm(x, W, b) by MatMul and Add, the form of all other linears, unless it has factors or transposes x."""
    changed = 0
    for node in nodes(model.graph, "Gemm"):
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(
            node, "transA", 0
        )
        if not plain:
            continue
        weight = node.inputs[1]
        if attribute(node, "transB", 0):
            weight = make("Transpose", [weight], node, perm=[1, 0]).outputs[0]
        result = make("MatMul", [node.inputs[0], weight], node)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = make("Add", [result.outputs[0], node.inputs[2]], node)
        replace(node.outputs[0], result.outputs[0])
        changed += 1
    return changed


def constants_last(model: ir.Model) -> int:
    """Make a constant the second input of an Add or Mul."""
    changed = 0
    for node in nodes(model.graph, "Add", "Mul"):
        first, second = node.inputs
        if constant(first) is not None and constant(second) is None:
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
            changed += 1
    return changed


def divisions_to_products(model: ir.Model) -> int:
    """Replace a division by constant powers of two by a product, with the same result to the bit."""
    changed = 0
    for node in nodes(model.graph, "Div"):
        divisor = constant(node.inputs[1])
        if divisor is None or not np.issubdtype(divisor.dtype, np.floating) or not power_of_two(divisor):
            continue
        factor = new_constant(model.graph, f"{node.inputs[1].name}.reciprocal", (1 / divisor).astype(divisor.dtype))
        replace(node.outputs[0], make("Mul", [node.inputs[0], factor], node).outputs[0])
        changed += 1
    return changed


def merge_unsqueezes(model: ir.Model) -> int:
    """Merge two Unsqueezes in a row, if all axes of the second are higher than those of the first."""
    changed = 0
    for node in nodes(model.graph, "Unsqueeze"):
        inner = producer(node.inputs[0], "Unsqueeze")
        if inner is None or only_reader(inner.outputs[0], "Unsqueeze") is None:
            continue
        axes = [constant(each.inputs[1]) for each in (inner, node)]
        if axes[0] is None or axes[1] is None or axes[0].max() >= axes[1].min() or axes[0].min() < 0:
            continue
        merged = new_constant(model.graph, "axes", np.concatenate([axes[0], axes[1]]))
        replace(node.outputs[0], make("Unsqueeze", [inner.inputs[0], merged], node).outputs[0])
        remove(inner)
        changed += 1
    return changed


def _symbols(value: ir.Value | None) -> list[Any] | None:
    """Return the dimensions of a tensor, as numbers or names; None if one is unknown."""
    if value is None or value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return None if any(dim is None for dim in dims) else dims


#: Values of batch and sequence while shapes are inferred. Primes rarely occur as other sizes, and `infer_shapes` takes the first
#: length that is not a size of any constant.
_BATCH, _LENGTHS = 10007, (61, 59, 53, 47, 43, 41, 37, 31)


def infer_shapes(model: ir.Model) -> int:
    """Record the type and shape of each tensor, with names for batch and sequence. Nothing else changes.

    ONNX's inference loses symbols when positions are sliced from a table, but not numbers. So inference runs with numbers for
    batch and sequence that no other size of the model has. Then the names replace the numbers.
    """
    sizes = {dim for value in model.graph.initializers.values() for dim in constant(value).shape}
    length = next(prime for prime in _LENGTHS if prime not in sizes)
    names: dict[int, str] = {_BATCH: "batch", length: "sequence"}
    values = [output for node in model.graph for output in node.outputs]
    _forget_shapes(model)
    for value in model.graph.inputs:
        value.shape = ir.Shape([_BATCH, length])
    common.ShapeInferencePass(data_prop=True)(model)
    for value in (*model.graph.inputs, *values):
        if value.shape is not None:
            value.shape = ir.Shape([names.get(dim, dim) if isinstance(dim, int) else None for dim in value.shape])
    return 0


def fold_casts(model: ir.Model) -> int:
    """Remove a Cast to the type that its input already has, and make the axis of a CumSum INT64."""
    changed = 0
    for node in nodes(model.graph, "Cast"):
        if node.inputs[0].dtype == attribute(node, "to", None):
            replace(node.outputs[0], node.inputs[0])
            changed += 1
    for node in nodes(model.graph, "CumSum"):
        axis = constant(node.inputs[1])
        if axis is not None and axis.dtype != np.int64:
            node.replace_input_with(1, new_constant(model.graph, "axis", axis.astype(np.int64)))
            changed += 1
    return changed


def constant_reshapes(model: ir.Model) -> int:
    """Make the target of a Reshape a constant: 0 keeps a dimension, and -1 stands for one other unknown dimension."""
    changed = 0
    for node in nodes(model.graph, "Reshape"):
        source, target = _symbols(node.inputs[0]), _symbols(node.outputs[0])
        if source is None or target is None or constant(node.inputs[1]) is not None:
            continue
        is_kept = [
            isinstance(dim, str) and index < len(source) and source[index] == dim for index, dim in enumerate(target)
        ]
        shape = [0 if keep else dim if isinstance(dim, int) else -1 for keep, dim in zip(is_kept, target, strict=True)]
        if shape.count(-1) > 1:
            continue
        value = new_constant(model.graph, "shape", np.array(shape, np.int64))
        replace(node.outputs[0], make("Reshape", [node.inputs[0], value], node).outputs[0])
        changed += 1
    common.RemoveUnusedNodesPass()(model)
    return changed


def dims_from_inputs(model: ir.Model) -> int:
    """Compute batch and sequence from the first input in all remaining shape arithmetic, as Shape(input_ids)[k:k+1]."""
    source = model.graph.inputs[0]
    named = {name: index for index, name in enumerate(_symbols(source) or ())}
    changed = 0
    for node in nodes(model.graph, "Shape"):
        dims = _symbols(node.inputs[0])
        end = attribute(node, "end", len(dims or ()))
        wanted = dims[attribute(node, "start", 0) : end] if dims else []
        if len(wanted) == 1 and wanted[0] in named:
            index = named[wanted[0]]
            changed += node.inputs[0] is not source or attribute(node, "start", 0) != index
            _read_dim(node.outputs[0], source, index, node)
            continue
        for reader in [use for use, _ in node.outputs[0].uses()]:
            changed += _gathered_dim(reader, dims, named, source)
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    _forget_shapes(model)  # later passes move tensors
    return changed


def _forget_shapes(model: ir.Model) -> None:
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None


def _read_dim(old: ir.Value, source: ir.Value, index: int, like: ir.Node) -> None:
    shape = make("Shape", [source], like, start=index, end=index + 1)
    shape.metadata_props[SCOPE] = str(source.name)
    replace(old, shape.outputs[0])


def _gathered_dim(gather: Any, dims: list[Any] | None, named: dict[Any, int], source: ir.Value) -> int:
    """Replace Gather(Shape(x), k) -> Unsqueeze, the TorchScript exporter's form of a dimension. Return the number replaced."""
    position = constant(gather.inputs[1]) if gather.op_type == "Gather" else None
    if position is None or position.size != 1 or not dims or dims[int(position.flat[0])] not in named:
        return 0
    changed = 0
    for reader in [use for use, _ in gather.outputs[0].uses()]:
        axes = constant(reader.inputs[1]) if reader.op_type == "Unsqueeze" else None
        if axes is not None and axes.tolist() == [0]:
            _read_dim(reader.outputs[0], source, named[dims[int(position.flat[0])]], reader)
            changed += 1
    return changed


#: Equal constants of up to this number of elements are stored once, such as zero points and the numbers of shapes.
_SHARED = 65536


def order_and_name(model: ir.Model) -> int:
    """Sort nodes in the order in which the output needs them, and name nodes, tensors and constants after their module.

    Default attributes are written out, and equal small constants are merged. After this pass, the graphs of both exporters are
    the same (for ModernBERT, except for names and zero biases).
    """
    graph = model.graph
    common.AddDefaultAttributesPass()(model)
    common.DeduplicateInitializersPass(size_limit=_SHARED)(model)
    _sort(graph)
    counts: Counter[str] = Counter()
    for node in graph:
        scope = node.metadata_props.get(SCOPE, (node.name or "").rpartition("/")[0])
        stem = f"{scope}/{node.op_type}".lstrip("/")
        node.name = f"{stem}_{counts[stem]}" if counts[stem] else stem
        counts[stem] += 1
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}:{index}" if len(node.outputs) > 1 else node.name
        ordered = sorted(node.attributes.values(), key=lambda item: item.name)
        node.attributes.clear()
        node.attributes.update({item.name: item for item in ordered})
    _name_constants(graph)
    return 0


def note_modules(model: ir.Model) -> int:
    """Record the modules whose output this file multiplies by a factor or computes in a fused GEMM, as `modules` of its metadata.

    All metadata of nodes and tensors are removed. Names, and the shapes of inputs and outputs, stay. Return the number of
    modules.
    """
    changed = _changed_modules(model.graph)
    common.ClearMetadataAndDocStringPass()(model)
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = output.type = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props["modules"] = _written(changed)
    return len(changed)


def _changed_modules(graph: ir.Graph) -> dict[str, tuple[str, list[float]]]:
    """Return module -> (tensor, factor). The tensor is the output of the module times the factor."""
    changed: dict[str, tuple[str, list[float]]] = {}
    ops: dict[str, str] = {}
    for node in graph:
        scope = node.metadata_props.get(SCOPE, "")
        factor = json.loads(node.metadata_props.get(FACTOR, "null"))
        if MODULES in node.metadata_props:
            names = json.loads(node.metadata_props[MODULES])
            for name, output, each in zip(names, node.outputs, factor, strict=True):
                changed[name] = str(output.name), each
        elif factor is not None:
            changed[scope], ops[scope] = (str(node.outputs[0].name), factor), node.op_type
        elif ops.get(scope) == node.op_type:
            changed.pop(scope, None)  # a later run of the module, without a factor
    return changed


def _written(modules: dict[str, tuple[str, list[float]]]) -> str:
    """Return JSON for the file's metadata. ``modules``: module -> [tensor, index of its factor]; ``factors``: each factor once.

    A factor of powers of two is written as ``{"log2": exponents}``, which is short.
    """
    numbers: dict[tuple[float, ...], int] = {}
    entries = {
        name: (tensor, numbers.setdefault(tuple(factor), len(numbers))) for name, (tensor, factor) in modules.items()
    }
    factors = [
        {"log2": np.log2(factor).astype(int).tolist()} if power_of_two(np.array(factor)) else factor
        for factor in numbers
    ]
    return json.dumps({"modules": entries, "factors": factors}, separators=(",", ":"))


def _sort(graph: ir.Graph) -> None:
    """Sort the nodes depth first from the outputs. There is no recursion, because BERT-large is deep."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()
    stack = [(output.producer(), False) for output in reversed(graph.outputs)]
    while stack:
        node, inputs_done = stack.pop()
        if node is None or (node in seen and not inputs_done):
            continue
        if inputs_done:
            order.append(node)
            continue
        seen.add(node)
        stack.append((node, True))
        stack += [(value.producer(), False) for value in reversed(node.inputs) if value is not None]
    graph.remove(list(graph))
    graph.extend(order)


def _name_constants(graph: ir.Graph) -> None:
    """Name constants after their first reader. Names of nodes are unique, so these names are unique, too."""
    graph.initializers.clear()
    named: set[ir.Value] = set()
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or value in named:
                continue
            value.name = value.const_value.name = f"{node.name}.{index}"
            graph.initializers[value.name] = value
            named.add(value)
