"""TensorRT and TensorRT-RTX on an NVIDIA GPU: run the plan that the same package built."""

from q8trt.runtime.tensorrt.runner import TENSORRT, TENSORRT_RTX

__all__ = ["TENSORRT", "TENSORRT_RTX"]
