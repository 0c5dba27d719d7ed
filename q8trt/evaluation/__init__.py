"""Evaluation: engines to a report, parity with the torch model, sensitivity of sites."""

__all__ = ["benchmark", "config", "data", "parity", "sensitivity"]
