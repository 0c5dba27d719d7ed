"""Model repositories of NVIDIA's Triton Inference Server from engine folders: texts in, scores or labels out."""

from q8trt.deployment.triton.config import TritonConfig
from q8trt.deployment.triton.repository import write_repository

__all__ = ["TritonConfig", "write_repository"]
