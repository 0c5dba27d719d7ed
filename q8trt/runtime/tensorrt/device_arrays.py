"""Arrays of other libraries on the GPU, read in place.

torch, CuPy, JAX and PyCUDA describe their memory by DLPack (https://dmlc.github.io/dlpack) or by
``__cuda_array_interface__`` (Numba documentation, "CUDA Array Interface"). DLPack is preferred, because it makes our stream wait
for the producer's work, which version 2 of the interface cannot.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from q8trt.errors import DataError
from q8trt.runtime.tensorrt.cuda import CheckedCuda

_HOST, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13  # DLDeviceType
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}  # DLDataTypeCode


class _DLTensor(ctypes.Structure):
    """DLPack's DLTensor, the beginning of the DLManagedTensor in a capsule named "dltensor"."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceArray:
    """One input on the GPU.

    Attributes:
        pointer: its address.
        dtype: the name of its type, such as "int32".
        device: the index of its GPU.
        strides: elements between neighbors along each axis; None for a C-contiguous array.
        stream: the stream whose work produces the array and must finish first; None if there is none.
        owner: the object that keeps the memory from being freed.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    strides: tuple[int, ...] | None
    stream: int | None
    owner: Any

    @property
    def contiguous(self) -> bool:
        """Return whether the elements follow each other in C order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides or ()), strict=False):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


def is_on_device(array: Any) -> bool:
    """Return whether an array reports, by either protocol, that it is not on the host."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) not in (_HOST, _CUDA_HOST)
    return hasattr(array, "__cuda_array_interface__")


def shape_of(array: Any) -> tuple[int, ...]:
    """Return the shape of an array on the host or a GPU; with ``__cuda_array_interface__`` it needs no attribute ``shape``."""
    if not hasattr(array, "shape") and hasattr(array, "__cuda_array_interface__"):
        return tuple(array.__cuda_array_interface__["shape"])
    return tuple(np.shape(array))


def on_gpu(
    name: str, array: Any, dtype: np.dtype[Any], device: int, stream: int, cuda: CheckedCuda
) -> DeviceArray | None:
    """Return `array` as a `DeviceArray` that an engine can read in place; None if it is an array of the host.

    Args:
        name: the input's name, for messages.
        array: anything.
        dtype: the type that the engine reads.
        device: the engine's GPU.
        stream: the CUDA stream that will read it; a DLPack producer makes this stream wait for its work.
        cuda: the CUDA runtime.

    Raises:
        DataError: the array is on another GPU or device, reports a GPU but has host memory, has a type other than `dtype`, or
            is not C-contiguous.
    """
    view = _view(name, array, stream, cuda)
    if view is None:
        return None
    if view.device != device:
        raise DataError(f"{name} is on GPU {view.device}, the engine on GPU {device}: copy it there first")
    if view.dtype != dtype.name:
        raise DataError(
            f"{name} is {view.dtype} on the GPU; the engine reads it in place, as {dtype.name}: "
            f"convert it first (torch: .to(torch.{dtype.name}), CuPy: .astype('{dtype.name}'))"
        )
    if not view.contiguous:
        raise DataError(
            f"{name} of shape {view.shape} is not contiguous on the GPU (strides {view.strides}); the engine reads it "
            "in place: make it so first (torch: .contiguous(), CuPy: cupy.ascontiguousarray)"
        )
    return view


def _view(name: str, array: Any, stream: int, cuda: CheckedCuda) -> DeviceArray | None:
    if not is_on_device(array):
        return None
    if not hasattr(array, "__dlpack_device__"):
        return _from_interface(name, array, cuda)
    kind = int(array.__dlpack_device__()[0])
    if kind not in (_CUDA, _CUDA_MANAGED):
        raise DataError(f"{name} is on a device of DLPack's type {kind}; pass an array on the host or on an NVIDIA GPU")
    return _from_dlpack(array.__dlpack__(stream=stream))


def _from_dlpack(capsule: Any) -> DeviceArray:
    """Read a DLPack capsule without consuming it, so that the capsule frees the memory when it is collected."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(get_pointer(capsule, b"dltensor"))
    kind = _KINDS.get(tensor.code, f"DLPack's type {tensor.code} of bits ")
    lanes = f"x{tensor.lanes}" if tensor.lanes != 1 else ""
    return DeviceArray(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[: tensor.ndim]),
        dtype=kind if kind == "bool" else f"{kind}{tensor.bits}{lanes}",
        device=tensor.device_id,
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        stream=None,
        owner=capsule,
    )


def _from_interface(name: str, array: Any, cuda: CheckedCuda) -> DeviceArray:
    described = array.__cuda_array_interface__
    dtype, pointer = np.dtype(described["typestr"]), int(described["data"][0])
    where = cuda.cudaPointerGetAttributes(pointer)
    if int(where.type) not in (
        int(cuda.cudaMemoryType.cudaMemoryTypeDevice),
        int(cuda.cudaMemoryType.cudaMemoryTypeManaged),
    ):
        raise DataError(f"{name} reports that it is on a GPU, but its memory is on the host; pass it as a NumPy array")
    strides = described.get("strides")
    return DeviceArray(
        pointer=pointer,
        shape=tuple(described["shape"]),
        dtype=dtype.name,
        device=int(where.device),
        strides=None if strides is None else tuple(step // dtype.itemsize for step in strides),
        stream=described.get("stream"),
        owner=array,
    )
