"""ONNX Runtime on the CPU in the place of TensorRT and the GPU, for the steps of a prepared check."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from q8trt.engine.config import PlanInfo
from q8trt.engine.report import EngineReport
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import EngineError
from q8trt.gpu_check import random_models
from q8trt.runtime.base import Timing
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

random_models.SIZES["bert-base"] = (32, 2, 2, 64)


class CpuRunner(OnnxRuntimeRunner):
    """The graph that stands for a plan, behind the interface of `TensorRTRunner`."""

    def __init__(self, plan: Path, precision: str) -> None:
        self._arguments = (plan, precision)
        super().__init__(plan, precision, threads=1)

    def fork(self) -> CpuRunner:
        return CpuRunner(*self._arguments)

    def infer_timed(self, arrays: Mapping[str, Any]) -> Timing:
        started = time.perf_counter()
        self.infer(arrays)
        host = 1000 * (time.perf_counter() - started)
        return Timing(0.1 * host, 0.7 * host, 0.1 * host, 0.01, host, True)

    def infer(self, arrays: Mapping[str, Any]) -> np.ndarray:
        return super().infer({name: np.asarray(array) for name, array in arrays.items()})


class CpuMachine:
    """See `q8trt.gpu_check.prepared.machine.Machine`; what Q8TRT_TEST_BROKEN says of a file's name goes wrong."""

    title, device, torch_device = "ONNX Runtime in TensorRT's place (rehearsal)", "cpu", "cpu"

    def build(self, onnx: Path, plan: Path, profiles: tuple[ShapeProfile, ...], timing_cache: Path) -> PlanInfo:
        broken = json.loads(os.environ.get("Q8TRT_TEST_BROKEN", "{}"))
        match next((what for name, what in broken.items() if name in onnx.name), ""):
            case "crash":
                os.abort()
            case "hang":
                time.sleep(600)
            case "refuse":
                raise EngineError("the parser refused the graph")
        shutil.copyfile(onnx, plan)
        report = EngineReport(source="rehearsal", profiles=len(profiles))
        return PlanInfo("tensorrt", "0", [], 0.5, plan.stat().st_size, "none", None, report)

    def inspect(self, plan: Path) -> str | None:
        """One layer a node, in INT8 where the node is a MatMul, in the form of TensorRT 11."""
        import onnx

        tensors = [{"Dimensions": [1, 8], "Datatype": "Int8"}]
        layers = [
            {
                "Name": node.name, "LayerType": "gemm" if node.op_type == "MatMul" else "kgen", "Inputs": tensors,
                "Outputs": tensors, "Metadata": f"[ONNX Layer: {node.name}]",
            }
            for node in onnx.load(plan).graph.node
        ]  # fmt: skip
        return json.dumps({"Layers": layers})

    def open(self, plan: Path, precision: str) -> CpuRunner:
        return CpuRunner(plan, precision)

    def free_bytes(self) -> int:
        return 2**30
