"""Runs: `run` is the folder that fine-tuning fills and its record, `config` and `training_config` its options, `search`
finds a run by what it has finished."""

__all__ = ["config", "fresh", "run", "search", "training_config"]
