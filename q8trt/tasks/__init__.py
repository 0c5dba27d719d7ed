"""The GLUE table (`glue`), heads of models (`heads`), metrics (`metrics`, `squad`) and what they score (`scoring`), answers in a
text (`spans`), tags of words (`tags`), and the data to train and score on (`data`).
"""

__all__ = ["data", "glue", "heads", "metrics", "scoring", "spans", "squad", "tags"]
