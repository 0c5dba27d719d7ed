"""PyCUDA with a context and a stream of its own: GPUArrays go into the engine without a copy.

    python examples/pycuda_arrays.py runs/NAME/engine 101 1037 4946 2003 2635 2125 1012 102

The numbers are token ids of one text. The context must be the device's primary one, which TensorRT, torch and CuPy use
too: memory of a context made by `make_context` is of another address space, and cannot be read from here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pycuda.driver as cuda
from pycuda import gpuarray

from q8trt import Engine


def main() -> None:
    """Copy one example to the GPU in a stream of our own, and run the engine on it there."""
    folder, *ids = sys.argv[1:]
    row = np.array([ids], np.int32)
    host = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}

    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        with Engine.load(Path(folder), device="cuda") as engine:
            stream = cuda.Stream()
            arrays = {
                name: gpuarray.to_gpu_async(host[name], stream=stream)  # int32 and C-contiguous, as the engine reads it
                for name in engine.manifest.inputs
            }
            stream.synchronize()  # a GPUArray does not tell which stream makes it, so the engine cannot wait for it
            print(engine.run(arrays))
            del arrays, stream  # given back while their context is there
    finally:
        context.pop()


if __name__ == "__main__":
    main()
