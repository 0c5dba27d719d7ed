"""ONNX Runtime on the CPU: runs ``model.onnx`` on any machine."""

from q8trt.runtime.onnxruntime.runner import ONNX_RUNTIME

__all__ = ["ONNX_RUNTIME"]
