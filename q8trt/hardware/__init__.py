"""This machine: its GPUs (`gpu`), installed packages, reach of the model hub, and the provenance of a result."""

__all__ = ["gpu", "hub", "packages", "provenance"]
