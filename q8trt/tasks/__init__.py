"""The tasks: the GLUE table (`glue`), metrics (`metrics`), and the data to train and score on (`data`)."""

__all__ = ["data", "glue", "metrics"]
