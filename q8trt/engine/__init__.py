"""Engines: plans and the folders that contain them.

`backend` imports TensorRT or TensorRT-RTX, and `driver` compares it with CUDA's driver. `build_process` builds a plan with the
options in `config` for the `shapes` that it accepts. `builder` does so in the current process. `layers`, `report`, `record` and
`determinism` have the facts of a build. `manifest` describes an engine folder, and `manifest_file` reads and writes the
description. `folder` finds engine folders, `preflight` reports the problems that keep a plan from running on this machine, and
`rebuild` makes the command that builds it again.
"""

__all__ = [
    "backend", "build_process", "builder", "config", "determinism", "driver", "folder", "layers", "manifest",
    "manifest_file", "preflight", "rebuild", "record", "report", "shapes",
]  # fmt: skip
