"""Runs: `run` is the folder that fine-tuning fills and its record; `config`, `training_config` and `quantize_config` are its
options, `settings` those that suit a model and a task; `search` finds a run by what it has finished."""

__all__ = ["config", "fresh", "quantize_config", "run", "search", "settings", "training_config"]
