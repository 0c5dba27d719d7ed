"""Run folders and their options.

`run` is the folder and its record run.json. `fresh` makes and locks it. `config`, `training_config` and `quantize_config` are
the options, and `settings` the best known ones for a model and a task. `search` finds a run by its finished stages.
"""

__all__ = ["config", "fresh", "quantize_config", "run", "search", "settings", "training_config"]
