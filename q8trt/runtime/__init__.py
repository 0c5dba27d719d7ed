"""Runtimes that run a model behind one contract, and `open_runner`, which picks one for an engine folder.

`base` is the contract, `registry` lists the runtimes, and each runtime has a folder. `scores` and `timing` measure any runner.
"""

from q8trt.runtime.base import EngineRuntime, Runner, RunOptions
from q8trt.runtime.opening import UnusablePlanError, open_runner
from q8trt.runtime.registry import RUNTIMES, cpu_runtime, find_runtime, label_of, parse_runtime

__all__ = [
    "RUNTIMES",
    "EngineRuntime",
    "RunOptions",
    "Runner",
    "UnusablePlanError",
    "base",
    "cpu_runtime",
    "find_runtime",
    "label_of",
    "onnxruntime",
    "open_runner",
    "parse_runtime",
    "registry",
    "scores",
    "tensorrt",
    "timing",
    "torch_runner",
]
