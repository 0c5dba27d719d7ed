"""Engines: plans and the folders that hold them.

`backend` is the seam to TensorRT and TensorRT-RTX, `driver` compares it with CUDA's driver. `build_process` builds a plan by
the options in `config` for the `shapes` that it takes, `builder` does so in this process; `layers`, `report`, `record` and
`determinism` hold the facts of it. `manifest` describes an engine folder and `manifest_file` reads and writes the description,
`folder` finds it, `preflight` reports what keeps its plan from running on this machine, and `rebuild` has the command that
builds it again.
"""

__all__ = [
    "backend", "build_process", "builder", "config", "determinism", "driver", "folder", "layers", "manifest",
    "manifest_file", "preflight", "rebuild", "record", "report", "shapes",
]  # fmt: skip
