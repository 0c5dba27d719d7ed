"""An engine folder as a model repository of NVIDIA's Triton Inference Server: texts in, scores or labels out."""

from q8trt.deployment.triton.config import TritonConfig
from q8trt.deployment.triton.repository import write_repository

__all__ = ["TritonConfig", "write_repository"]
