"""Evaluation: benchmark reports of engines, their parity with the torch model, and the sensitivity of sites."""

__all__ = ["benchmark", "config", "data", "parity", "sensitivity"]
