"""Engines: plans and the folders that hold them.

`backend` is the seam to TensorRT and TensorRT-RTX, `config` the options of a build. `build_process` builds a plan, and
`report` and `record` hold the facts of it. `manifest` describes an engine folder, `folder` finds it, and `preflight` reports
what keeps its plan from running on this machine.
"""

from q8trt.engine.config import BuildConfig, PlanInfo
from q8trt.engine.manifest import Manifest, load_manifest, write_manifest
from q8trt.engine.shapes import ShapeProfile

__all__ = [
    "BuildConfig",
    "Manifest",
    "PlanInfo",
    "ShapeProfile",
    "backend",
    "build_process",
    "config",
    "determinism",
    "driver",
    "folder",
    "load_manifest",
    "manifest",
    "preflight",
    "rebuild",
    "record",
    "report",
    "shapes",
    "write_manifest",
]
