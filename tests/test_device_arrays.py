"""Arrays on the GPU. Their memory is the stand-in CUDA's; DLPack capsules are NumPy's own, so their layout is the real one."""

import ctypes
import struct
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt.errors import DataError
from q8trt.runtime.tensorrt.device_arrays import _from_dlpack
from q8trt.runtime.tensorrt.runner import TensorRTRunner

pytest.importorskip("onnx", reason="onnx is not installed")
from engine_fixtures import TABLE, tiny_logits
from tensorrt_fakes import install

RANDOM = np.random.default_rng(2)


def batch(rows: int = 3, length: int = 5) -> dict[str, np.ndarray]:
    ids = RANDOM.integers(0, len(TABLE), (rows, length), dtype=np.int32)
    return {"input_ids": ids, "attention_mask": RANDOM.integers(0, 2, (rows, length), dtype=np.int32)}


class Dlpack:
    """Speaks DLPack only, as JAX does; `kind` is the DLDeviceType."""

    def __init__(self, array: np.ndarray, kind: int = 2) -> None:
        self.array, self.kind, self.streams = array, kind, []  # type: ignore[var-annotated]
        self.shape = array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, stream: int) -> Any:
        self.streams.append(stream)
        return self.array.__dlpack__()


class Interface:
    """Speaks `__cuda_array_interface__` only, as PyCUDA does."""

    def __init__(self, cuda: Any, array: np.ndarray, **more: Any) -> None:
        self.array = array
        pointer = array.ctypes.data
        cuda.memory[pointer] = array  # the stand-in takes it for memory of the device
        whole = {"shape": array.shape, "typestr": array.dtype.str, "data": (pointer, False), "version": 3}
        strides = None if array.flags.c_contiguous else array.strides
        self.__cuda_array_interface__ = whole | {"strides": strides} | more


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    return install("tensorrt", monkeypatch.setattr)


@pytest.fixture
def runner(fake: types.SimpleNamespace, tmp_path: Path) -> Any:
    (tmp_path / "model.plan").write_bytes(b"plan")
    with TensorRTRunner(tmp_path / "model.plan", "int8") as runner:
        yield runner


def test_a_capsule_may_begin_within_its_memory() -> None:
    """NumPy's offset is always 0; the fields are those of dlpack.h."""
    memory, sizes = np.arange(8, dtype=np.int32), np.array([2, 3], np.int64)
    tensor = struct.pack("=QiiiBBHQQQ", memory.ctypes.data, 2, 5, 2, 0, 32, 1, sizes.ctypes.data, 0, 8)
    block = ctypes.create_string_buffer(tensor)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    found = _from_dlpack(new(ctypes.addressof(block), b"dltensor", None))
    assert (found.pointer, found.shape, found.dtype) == (memory.ctypes.data + 8, (2, 3), "int32")
    assert (found.device, found.strides, found.contiguous) == (5, None, True)


@pytest.mark.parametrize("kind", [2, 13])
def test_dlpack_is_read_in_place(fake: types.SimpleNamespace, runner: TensorRTRunner, kind: int) -> None:
    arrays = batch()
    given = {name: Dlpack(array, kind) for name, array in arrays.items()}
    for cuda_graph in (False, True, True):
        copies = fake.cuda.calls.count("cudaMemcpyAsync")
        timing = runner.infer_timed(given)
        assert fake.cuda.calls.count("cudaMemcpyAsync") - copies == 1  # the logits
        assert (timing.h2d_ms, timing.cuda_graph) == (0, cuda_graph)
    np.testing.assert_array_equal(runner.infer(given), tiny_logits(**arrays))
    arrays["input_ids"][:] = 1
    np.testing.assert_array_equal(runner.infer(given), tiny_logits(**arrays))  # in place indeed
    streams = given["input_ids"].streams
    assert len(streams) == 5
    assert ("stream", streams[0]) in fake.cuda.handles  # our stream: the producer's work precedes what it reads


def test_other_memory_of_the_same_shape_is_not_read_by_the_old_graph(runner: TensorRTRunner) -> None:
    first, second = batch(), batch()
    for arrays in (first, first, first, second, second, first):
        given = {name: Dlpack(array) for name, array in arrays.items()}
        np.testing.assert_array_equal(runner.infer(given), tiny_logits(**arrays))


def test_host_and_device_arrays_mix(runner: TensorRTRunner) -> None:
    for _ in range(3):
        arrays = batch()
        given = arrays | {"input_ids": Dlpack(arrays["input_ids"])}
        np.testing.assert_array_equal(runner.infer(given), tiny_logits(**arrays))


def test_cuda_array_interface_is_read_in_place(fake: types.SimpleNamespace, runner: TensorRTRunner) -> None:
    arrays = batch()
    given: dict[str, Any] = {name: Interface(fake.cuda, array) for name, array in arrays.items()}
    np.testing.assert_array_equal(runner.infer(given), tiny_logits(**arrays))
    assert "cudaStreamWaitEvent" not in fake.cuda.calls  # no stream, nothing to wait for
    given["input_ids"] = Interface(fake.cuda, arrays["input_ids"], stream=2)
    np.testing.assert_array_equal(runner.infer(given), tiny_logits(**arrays))
    assert fake.cuda.calls.count("cudaStreamWaitEvent") == 1
    for array in arrays.values():
        del fake.cuda.memory[array.ctypes.data]


def test_arrays_of_the_host_are_copied_whoever_made_them(fake: types.SimpleNamespace, runner: TensorRTRunner) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    arrays = batch()
    given = {name: torch.from_numpy(array).long() for name, array in arrays.items()}
    np.testing.assert_array_equal(runner.infer(given), tiny_logits(**arrays))
    listed = {name: array.tolist() for name, array in arrays.items()}
    np.testing.assert_array_equal(runner.infer(listed), tiny_logits(**arrays))


def test_the_type_must_be_the_engine_s(fake: types.SimpleNamespace, runner: TensorRTRunner) -> None:
    ids = batch()["input_ids"]
    expected = (
        "input_ids is {} on the GPU; the engine reads it in place, as int32: convert it first "
        r"\(torch: .to\(torch.int32\), CuPy: .astype\('int32'\)\)"
    )
    for kind in ("int64", "float32", "uint8", "bool", "complex64"):
        wrong = ids.astype(kind)
        for given in (Dlpack(wrong), Interface(fake.cuda, wrong)):
            with pytest.raises(DataError, match=expected.format(kind)):
                runner.infer(batch() | {"input_ids": given})


def test_the_memory_must_be_contiguous(fake: types.SimpleNamespace, runner: TensorRTRunner) -> None:
    wide = batch(3, 10)["input_ids"]
    for wrong, strides in ((wide[:, ::2], r"\(10, 2\)"), (np.asfortranarray(wide[:, :5]), r"\(1, 3\)")):
        for given in (Dlpack(wrong), Interface(fake.cuda, wrong)):
            with pytest.raises(
                DataError, match=rf"input_ids of shape \(3, 5\) is not contiguous .* \(strides {strides}\)"
            ):
                runner.infer(batch() | {"input_ids": given})
    row = {name: array[:, ::2] for name, array in batch(1, 10).items()}
    with pytest.raises(DataError, match="not contiguous"):
        runner.infer({name: Dlpack(array) for name, array in row.items()})
    row = {name: array[::2] for name, array in batch(2, 5).items()}  # one row: its stride is no matter
    arrays = {name: array.copy() for name, array in row.items()}
    np.testing.assert_array_equal(
        runner.infer({name: Dlpack(array) for name, array in row.items()}), tiny_logits(**arrays)
    )


def test_the_device_must_be_the_engine_s(fake: types.SimpleNamespace, runner: TensorRTRunner) -> None:
    arrays = batch()
    fake.cuda.device_of = 1
    with pytest.raises(DataError, match="input_ids is on GPU 1, the engine on GPU 0: copy it there first"):
        runner.infer(arrays | {"input_ids": Interface(fake.cuda, arrays["input_ids"])})
    with pytest.raises(
        DataError, match="input_ids is on a device of DLPack's type 10; pass an array on the host or on an"
    ):
        runner.infer(arrays | {"input_ids": Dlpack(arrays["input_ids"], kind=10)})
    fake.cuda.memory.pop(arrays["input_ids"].ctypes.data)
    liar = Interface(fake.cuda, arrays["input_ids"])
    del fake.cuda.memory[arrays["input_ids"].ctypes.data]
    with pytest.raises(DataError, match="input_ids reports that it is on a GPU, but its memory is on the host"):
        runner.infer(arrays | {"input_ids": liar})


def test_the_shape_must_be_the_others(runner: TensorRTRunner) -> None:
    with pytest.raises(DataError, match=r"inputs must share one \(batch, sequence\) shape; got .*\(3, 5\).*\(3, 4\)"):
        runner.infer({"input_ids": Dlpack(batch()["input_ids"]), "attention_mask": Dlpack(batch(3, 4)["input_ids"])})
