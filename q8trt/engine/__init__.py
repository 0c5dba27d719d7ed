"""Engines: the one seam to TensorRT and TensorRT-RTX, building plans, the manifest of an engine folder."""
