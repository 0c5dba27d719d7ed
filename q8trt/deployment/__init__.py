"""Deployment: engine folders from runs, and archives and Triton model repositories from engine folders.

`source` finds a checkpoint, and `engine_folder` builds an engine from it. `quantizing` makes engines and a report from a
fine-tuned model. `archive` packs an engine folder into one file and unpacks it. `triton` writes a model repository. This file
imports nothing, because builds need torch and archives do not.
"""

__all__ = ["archive", "engine_folder", "quantizing", "source", "triton"]
