"""ONNX files whose stored sizes do not match, or whose weights are outside their folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from q8trt.errors import EngineError
from q8trt.files import MalformedError
from q8trt.files.onnx import check_file, check_model, load_external, messages
from q8trt.files.onnx import storage as storage_module

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def model_with(*tensors: onnx.TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], list(tensors)))


def external(location: str, offset: str | None = None, length: str | None = None) -> onnx.TensorProto:
    """A float32 (3, 4) tensor whose values are in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    entries = {"location": location, "offset": offset, "length": length}
    tensor.external_data.extend(
        onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items() if value is not None
    )
    return tensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for models with weights.bin in it, beside outside.bin."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "outside.bin")
    (tmp_path / "model" / "circle").symlink_to(tmp_path / "model" / "circle")
    (tmp_path / "model" / "inside.bin").symlink_to("weights.bin")
    return tmp_path / "model"


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("location", "offset", "length"),
    [("weights.bin", None, None), ("weights.bin", "0", "48"), ("inside.bin", None, "48"), ("./weights.bin", "0", None)],
)
def test_values_beside_the_model_are_read(folder: Path, location: str, offset: Any, length: Any) -> None:
    tensor = external(location, offset, length)
    path = saved(folder, model_with(tensor))
    check_file(path)
    load_external(tensor, path)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHT)


OUTSIDE, ABSENT = "outside the model's folder", "does not exist"


@pytest.mark.parametrize(
    ("location", "offset", "length", "problem"),
    [
        ("../outside.bin", None, None, OUTSIDE),
        ("sub/../../outside.bin", None, None, OUTSIDE),
        ("link.bin", None, None, OUTSIDE),
        ("{folder}/weights.bin", None, None, OUTSIDE),
        ("/dev/zero", None, None, ABSENT),
        ("absent.bin", None, None, ABSENT),
        ("circle", None, None, ABSENT),
        ("", None, None, ABSENT),
        (".", None, None, ABSENT),
        ("nul\0.bin", None, None, ABSENT),
        ("n" * 300, None, None, ABSENT),
        ("weights.bin", "4", None, "truncated: tensor 'w' reaches to byte 52 of 48"),
        ("weights.bin", "9" * 19, None, "truncated"),
        ("weights.bin", "-4", None, "has the offset '-4', which is not a number of bytes"),
        ("weights.bin", "0x0", None, "not a number of bytes"),
        ("weights.bin", None, "4", "needs 48 bytes, but claims 4"),
        ("weights.bin", None, "9" * 5000, "not a number of bytes"),
    ],
)
def test_values_elsewhere_are_refused(folder: Path, location: str, offset: Any, length: Any, problem: str) -> None:
    path = saved(folder, model_with(external(location.format(folder=folder), offset, length)))
    with pytest.raises(EngineError) as caught:
        check_file(path)
    assert str(caught.value).startswith(f"cannot load {path}, which may be damaged: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_that_is_named_twice_is_refused(folder: Path) -> None:
    tensor = external("weights.bin")
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="../outside.bin"))
    with pytest.raises(EngineError, match="twice"):
        check_file(saved(folder, model_with(tensor)))


def test_a_download_cache_of_links_is_no_way_out(folder: Path) -> None:
    """The Hugging Face cache keeps a model and its weights as links into one folder."""
    cache = folder.parent / "snapshot"
    cache.mkdir()
    path = saved(folder, model_with(external("weights.bin")))
    (cache / "model.onnx").symlink_to(path)
    (cache / "weights.bin").symlink_to(folder / "weights.bin")
    check_file(cache / "model.onnx")


def in_a_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    return model_with(nodes=[helper.make_node("Constant", [], ["y"], value=tensor)])


def in_a_subgraph(tensor: onnx.TensorProto) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "branch", [], [output], [tensor])
    return model_with(nodes=[helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)])


def in_a_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_with(nodes=[helper.make_node("Mine", ["x"], ["y"], domain="own")])
    body = helper.make_node("Constant", [], ["b"], value=tensor)
    model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], [body], [helper.make_opsetid("", 20)]))
    return model


def sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = model_with()
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.arange(3)), dims=[12])
    )
    return model


@pytest.mark.parametrize("place", [model_with, in_a_constant, in_a_subgraph, in_a_function, sparse])
def test_every_place_of_a_tensor_is_checked(
    folder: Path, place: Callable[[onnx.TensorProto], onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(folder, place(external("../outside.bin")))
    with pytest.raises(EngineError, match=OUTSIDE):
        check_file(path)
    monkeypatch.setattr(storage_module, "_PARSED", 0)  # as if the file were large
    with pytest.raises(EngineError, match=OUTSIDE):
        check_file(path)


def raw(element: int, dims: list[int], size: int) -> onnx.TensorProto:
    return TensorProto(name="w", data_type=element, dims=dims, raw_data=bytes(size))


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (raw(1, [3, 4], 44), r"'w', FLOAT of shape \(3; 4\), needs 48 bytes but stores 44"),
        (raw(1, [3, 4], 52), "needs 48 bytes but stores 52"),
        (raw(1, [2**40], 16), "needs 4,398,046,511,104 bytes but stores 16"),
        (raw(1, [2**40, 2**40], 16), "needs"),
        (raw(1, [2**40], 0), "needs 1,099,511,627,776 values but stores 0"),
        (raw(1, [-3, -4], 48), r"has the shape \(-3; -4\)"),
        (raw(0, [3, 4], 48), "type number 0"),
        (raw(99, [3, 4], 48), "type number 99"),
        (raw(TensorProto.INT4, [5], 2), "needs 3 bytes but stores 2"),
        (raw(TensorProto.STRING, [2], 2), "strings as raw bytes"),
        (TensorProto(name="w", data_type=TensorProto.COMPLEX64, dims=[2], float_data=[1, 2]), "needs 4 values but stores 2"),
        (TensorProto(name="w\n\x1b", data_type=TensorProto.FLOAT16, dims=[2], int32_data=[1]), r"'w\\n\\x1b', FLOAT16"),
    ],
)  # fmt: skip
def test_a_tensor_stores_what_it_claims(tensor: onnx.TensorProto, problem: str) -> None:
    with pytest.raises(MalformedError, match=problem):
        check_model(model_with(tensor), None)
    with pytest.raises(MalformedError, match=problem):
        check_model(messages.parse(model_with(tensor).SerializeToString()), None)


@pytest.mark.parametrize("element", [number for number in storage_module.TYPES if number != TensorProto.STRING])
def test_what_the_onnx_package_writes_passes(element: int) -> None:
    """Both encodings of every type, of an odd number of elements."""
    tensors = [helper.make_tensor(f"t{number}", element, [number], [1] * number) for number in (0, 3, 5)]
    tensors += [
        helper.make_tensor("r", element, [5], numpy_helper.to_array(tensors[2]).tobytes(), raw=True)
        for _ in range(storage_module.TYPES[element][1] >= 8)
    ]
    check_model(model_with(*tensors), None)
    assert storage_module.TYPES[element][0] == TensorProto.DataType.Name(element)


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile"])
@pytest.mark.parametrize("stored", ["initializer", "Constant"])
def test_a_small_file_cannot_ask_for_a_huge_constant(op: str, stored: str) -> None:
    def grown(*sizes: int) -> onnx.ModelProto:
        shape = numpy_helper.from_array(np.array(sizes), "s")
        nodes = [helper.make_node(op, ["s"] if op == "ConstantOfShape" else ["x", "s"], ["y"])]
        if stored == "initializer":
            return model_with(shape, nodes=nodes)
        return model_with(nodes=[helper.make_node("Constant", [], ["s"], value=shape), *nodes])

    check_model(grown(1, 4096), None)
    with pytest.raises(MalformedError, match=op):
        check_model(grown(1, 2**40), None)


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x0a\xff\xff\xff\xff\x0fno")
    with pytest.raises(EngineError, match="not an ONNX model"):
        check_file(tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="cannot be read"):
        check_file(tmp_path)
