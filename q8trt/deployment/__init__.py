"""Deployment: a run to an engine folder, an engine folder to an archive or a Triton model repository."""
