"""ONNX files without the onnx package: the onnx package is the reference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_onnxruntime_graph import linear, shared_activation  # graphs with what the rewrites look for

from q8trt.files.onnx import messages
from q8trt.runtime.onnxruntime.graph import (
    dequantize_gathered_rows,
    for_the_cpu,
    fuse_linears,
    use_unsigned_activations,
    use_unsigned_weights,
)


@pytest.mark.parametrize("message", messages.SCHEMA)
def test_the_declared_fields_are_those_of_onnx(message: str) -> None:
    owner = onnx.TypeProto if message == "Tensor" else onnx
    official = getattr(owner, message).DESCRIPTOR.fields_by_name
    for name, (number, kind, repeated) in messages.SCHEMA[message].items():
        field = official[name]
        names = {
            value: key.removeprefix("TYPE_").lower()
            for key, value in vars(type(field)).items()
            if key.startswith("TYPE_")
        }
        theirs = "int32" if field.enum_type else field.message_type.name if field.message_type else names[field.type]
        assert (field.number, theirs, field.is_repeated) == (number, kind, repeated), name


@pytest.mark.parametrize("element", messages.DTYPES)
def test_values_in_either_encoding_are_those_of_onnx(element: int) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(messages.DTYPES[element])
    typed = helper.make_tensor("typed", element, values.shape, values.ravel())
    raw = numpy_helper.from_array(values, "raw")
    scalar = helper.make_tensor("scalar", element, (), values.ravel()[:1])
    for tensor in (typed, raw, scalar):
        found = messages.to_array(tensor)
        assert found is not None
        assert found.dtype == messages.DTYPES[element]
        np.testing.assert_array_equal(found, numpy_helper.to_array(tensor), strict=True)


def test_values_of_other_types_are_not_read() -> None:
    assert messages.to_array(helper.make_tensor("words", TensorProto.STRING, (1,), [b"word"])) is None


def test_set_array_keeps_the_name_and_replaces_the_rest() -> None:
    tensor = helper.make_tensor("kept", TensorProto.FLOAT, (3,), [1.0, 2.0, 3.0])
    messages.set_array(tensor, np.array([[1, 255]], np.uint8))
    assert tensor == numpy_helper.from_array(np.array([[1, 255]], np.uint8), "kept")


def test_what_is_not_declared_is_written_back_as_it_was() -> None:
    model = shared_activation()
    model.producer_name, model.doc_string = "someone", "of the model"
    helper.set_model_props(model, {"q8trt.smoothing": "1,2"})
    model.graph.doc_string = "of the graph"
    parsed = messages.parse(model.SerializeToString())
    assert onnx.load_from_string(parsed.SerializeToString()) == model


@pytest.mark.parametrize("unsigned_weights", [True, False])
@pytest.mark.parametrize("model", [shared_activation(), linear(), linear(axis=None)], ids=["shared", "axis", "tensor"])
def test_the_rewritten_file_is_that_of_the_onnx_package(model: onnx.ModelProto, unsigned_weights: bool) -> None:
    data = model.SerializeToString()
    expected = onnx.load_from_string(data)
    use_unsigned_activations(expected)
    dequantize_gathered_rows(expected)
    if unsigned_weights:
        use_unsigned_weights(expected)
    fuse_linears(expected)
    found = onnx.load_from_string(for_the_cpu(data, unsigned_weights))
    assert found == expected
    assert found != model
    types = {tensor.name: tensor.data_type for tensor in found.graph.initializer}
    weight = types.get("w", types.get("w0"))
    assert weight == (TensorProto.UINT8 if unsigned_weights else TensorProto.INT8)


def test_by_default_this_cpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    data = linear().SerializeToString()
    for answer in (True, False):
        monkeypatch.setattr("q8trt.runtime.onnxruntime.graph.saturates", lambda answer=answer: answer)
        assert for_the_cpu(data) == for_the_cpu(data, answer)
    assert for_the_cpu(data, True) != for_the_cpu(data, False)


def test_what_is_no_model_or_has_its_weights_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not an ONNX model: "):
        for_the_cpu(b"\x0a\xff\xff\xff\xff\x0fno")
    model = shared_activation()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ValueError, match="it keeps weights in another file"):
        for_the_cpu(model.SerializeToString())


def test_the_onnx_package_is_not_imported(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "model.onnx")
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from q8trt.runtime.onnxruntime.graph import for_the_cpu\n"
        f"data = open({str(tmp_path / 'model.onnx')!r}, 'rb').read()\n"
        "print(for_the_cpu(data, True) != data)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
