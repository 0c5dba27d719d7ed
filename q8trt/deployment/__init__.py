"""Deployment: a run to an engine folder, an engine folder to an archive or a Triton model repository.

`source` finds the checkpoint and `engine_folder` builds of it; `quantizing` takes a model of one's own to engines and a report.
`archive` packs an engine folder into one file and unpacks it, `triton` writes a model repository. Nothing is imported here:
building needs torch, packing does not.
"""

__all__ = ["archive", "engine_folder", "quantizing", "source", "triton"]
