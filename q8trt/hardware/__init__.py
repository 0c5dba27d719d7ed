"""This machine: its GPUs (`gpu`), its packages, whether it reaches the model hub, and the provenance of a result."""

__all__ = ["gpu", "hub", "packages", "provenance"]
