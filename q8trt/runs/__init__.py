"""Runs: `run` is the folder that fine-tuning fills and its record, `config` and `training_config` its options, `settings`
the options that suit a model and a task, `search` finds a run by what it has finished."""

__all__ = ["config", "fresh", "run", "search", "settings", "training_config"]
