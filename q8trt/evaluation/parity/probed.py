"""Runners that also return and replace the outputs of single modules, which they find by the module's path.

`q8trt.export` names a node of the exported file after its module: "bert.encoder.layer.0.output.LayerNorm/LayerNormalization"
belongs to "bert.encoder.layer.0.output.LayerNorm". If a pass folded a factor into a module, the file's metadata records it. A
TensorRT plan fuses these modules, so it has no runner here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from q8trt.console.names import one_line
from q8trt.errors import BackendError, EngineError
from q8trt.files import parse_json
from q8trt.quantization.architectures import architecture_of
from q8trt.quantization.precision import Precision
from q8trt.runtime.onnxruntime.runner import CPU, OnnxRuntimeRunner
from q8trt.runtime.torch_runner import TorchRunner

if TYPE_CHECKING:
    import onnx_ir as ir

#: Suffix of the name of an input that replaces a module's output.
_REPLACED = ".replaced"
_Places = tuple[tuple[str, ...], tuple[str, ...]]


class ProbedTorch(TorchRunner):
    """A `TorchRunner` with the outputs of modules. If a module runs several times, as in ALBERT, it returns the last output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._runs: dict[str, int] = {}

    def modules(self, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
        """Return the paths of the Linear, LayerNorm and Embedding modules that have an output for each row of `arrays`.

        They are in the order of computation. BERT's table of positions is excluded, because it is read once for all rows. Layers
        that end with a sum, as in ModernBERT, are included, because none of their modules returns the hidden states.
        """
        from torch import nn

        kinds, architecture = (nn.Linear, nn.LayerNorm, nn.Embedding), architecture_of(self._model.config)
        layers = self._model.base_model.get_submodule(architecture.layers) if architecture.norm_first else ()
        candidates = [
            name
            for name, module in self._model.named_modules()
            if isinstance(module, kinds) or any(module is layer for layer in layers)
        ]
        rows = len(next(iter(self.checked(arrays).values())))
        return tuple(name for name, output in self.outputs(arrays, candidates).items() if len(output) == rows)

    def spreads(self, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """Return the spread of the channels at the sites of a quantized model, see `q8trt.quantization.spreads`."""
        from q8trt.quantization.spreads import measure_spreads

        tensors = ({name: self._torch.as_tensor(array) for name, array in each.items()} for each in batches)
        return measure_spreads(self._model, tensors)

    def outputs(
        self,
        arrays: Mapping[str, np.ndarray],
        modules: Sequence[str],
        replacements: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Run one batch as `infer` does.

        Args:
            arrays: see `Runner.infer`.
            modules: paths of modules.
            replacements: module -> array that replaces its output for its readers, float32, of the output's shape.

        Returns:
            module -> its output before replacement, float32, (batch, sequence, features) or (batch, features), in the order
            of computation.
        """
        outputs: dict[str, np.ndarray] = {}
        replacements, runs = replacements or {}, dict[str, int]()

        def probe(name: str, output: Any) -> Any:
            runs[name] = runs.get(name, 0) + 1
            if name in modules:
                outputs[name] = output.float().cpu().numpy()
            replaced = replacements.get(name) if runs[name] == self._runs.get(name, 1) else None
            return None if replaced is None else self._torch.as_tensor(replaced).to(output)

        hooks = [
            self._model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: probe(name, output))
            for name in dict.fromkeys([*modules, *replacements])
        ]
        try:
            self.infer(arrays)
        finally:
            for hook in hooks:
                hook.remove()
        self._runs |= runs
        return outputs


class ProbedOnnxRuntime(OnnxRuntimeRunner):
    """An `OnnxRuntimeRunner` on the CPU with the outputs of the torch modules from which the file was traced.

    `infer` runs the file unchanged and computes FP16 in FP16, because this check must show its effects. `outputs` runs a copy
    of the file with more outputs, in which fewer operators may be fused.
    """

    def __init__(self, path: str | Path, precision: Precision | str) -> None:
        super().__init__(path, precision, widen=False)
        self._path = Path(path)
        self._probed: tuple[_Places, Any] = ((), ()), None
        self._factors: dict[str, np.ndarray] = {}

    def outputs(
        self,
        arrays: Mapping[str, np.ndarray],
        modules: Sequence[str],
        replacements: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """See `ProbedTorch.outputs`.

        Raises:
            EngineError: the file has no node of a module.
            BackendError: ONNX Runtime refused the batch.
        """
        replacements = replacements or {}
        session = self._probing((tuple(modules), tuple(replacements)))
        feed = {name: array.astype(self._types[name], copy=False) for name, array in self.checked(arrays).items()}
        kind = np.float16 if self.precision.is_half else np.float32
        for module, array in replacements.items():
            feed[f"{module}{_REPLACED}"] = (array * self._factors.get(module, 1)).astype(kind)
        names = [output.name for output in session.get_outputs()][-len(modules) :]
        try:
            arrays_out = session.run(names, feed, self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise BackendError(f"ONNX Runtime refused the batch: {one_line(error)}") from error
        outputs = {module: np.asarray(each, np.float32) for module, each in zip(modules, arrays_out, strict=True)}
        return {module: each / self._factors.get(module, np.float32(1)) for module, each in outputs.items()}

    def _probing(self, places: _Places) -> Any:
        """Return a session for `places`, (modules to return, modules to replace). The latest session is cached."""
        if self._probed[0] != places:
            import onnx_ir as ir

            model = self._loaded()
            names, self._factors = module_outputs(model)
            values = ir.convenience.create_value_mapping(model.graph)
            outputs = {module: values[name] for module, name in names.items() if name in values}
            for name in {*places[0], *places[1]} - outputs.keys():
                raise EngineError(f"{self._path} has no node of {name}; export it again with build_engine.py")
            _open_up(model.graph, outputs, places, ir.DataType.FLOAT16 if self.precision.is_half else ir.DataType.FLOAT)
            with tempfile.TemporaryDirectory() as folder:
                ir.save(model, Path(folder) / "model.onnx")
                self._probed = places, self._open(Path(folder) / "model.onnx", [CPU], None)
        return self._probed[1]

    def _loaded(self) -> ir.Model:
        """Return the file with its external data. `OnnxRuntimeRunner` has checked it."""
        import onnx_ir as ir

        try:
            return ir.external_data.load_to_model(ir.load(self._path))
        except Exception as error:  # those of protobuf, onnx_ir and the system share no base
            raise EngineError(f"{self._path} cannot be read: {one_line(error)}") from None

    def close(self) -> None:
        """Close both sessions."""
        super().close()
        self._probed = ((), ()), None


def module_outputs(model: ir.Model) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the name of the tensor that each module returns: from the metadata, else from the last node named after it.

    The names of nodes are right for a module that computes its output itself, such as Linear, but not for one that returns the
    output of another module.

    Returns:
        module path -> tensor name; module path -> factor in this tensor if it is not 1, float32, () or (features,).

    Raises:
        EngineError: the metadata are damaged.
    """
    tensors, factors = {}, {}
    for node in model.graph:
        scope, _, operation = (node.name or "").rpartition("/")
        if scope and operation:
            tensors[scope] = node.outputs[0].name or ""
    try:
        noted = parse_json(model.metadata_props.get("modules", '{"modules": {}, "factors": []}'))
        for module, (tensor, number) in noted["modules"].items():
            written = noted["factors"][number]
            factor = 2.0 ** np.array(written["log2"]) if isinstance(written, dict) else np.array(written)
            tensors[module], factors[module] = str(tensor), factor.astype(np.float32)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise EngineError(
            f"the entry 'modules' of the ONNX file's metadata is damaged ({one_line(error)}); export it again"
        ) from None
    return tensors, factors


def _open_up(graph: ir.Graph, outputs: Mapping[str, ir.Value], places: _Places, dtype: ir.DataType) -> None:
    """Add the outputs of the modules `places[0]` to the graph's outputs, and replace those of `places[1]` by inputs."""
    import onnx_ir as ir

    for name in places[1]:
        shape = ir.Shape(["batch", "sequence", None])
        replacement = ir.Value(name=f"{name}{_REPLACED}", type=ir.TensorType(dtype), shape=shape)
        graph.inputs.append(replacement)
        for node, position in tuple(outputs[name].uses()):
            node.replace_input_with(position, replacement)
    graph.outputs.extend([_joined(graph, outputs[name]) for name in places[0]])


def _joined(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Return (B, S, A * D) if `value` is (B, A, S, D), the heads of a fused QKV projection; else `value`.

    The graph contains this step, because ONNX Runtime may return such a value after its quantizer.
    """
    import onnx_ir as ir

    node = value.producer()
    if node is None or node.op_type != "Split":
        return value
    shape = ir.Value(name=f"{value.name}.shape", const_value=ir.tensor([0, 0, -1]))
    graph.register_initializer(shape)
    rows = ir.node("Transpose", [value], {"perm": [0, 2, 1, 3]}, name=f"{value.name}.rows")
    joined = ir.node("Reshape", [rows.outputs[0], shape], name=f"{value.name}.joined")
    graph.extend([rows, joined])
    return joined.outputs[0]
