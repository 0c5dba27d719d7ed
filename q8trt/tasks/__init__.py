"""Tasks: the GLUE table (`glue`), heads of models (`heads`), metrics (`metrics`, `squad`) and scoring (`scoring`), answers in a
context (`spans`), tags of words (`tags`), and the data to train and score on (`data`).
"""

__all__ = ["data", "glue", "heads", "metrics", "scoring", "spans", "squad", "tags"]
