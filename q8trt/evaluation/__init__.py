"""Evaluation: engines to a report, parity with the torch model, sensitivity of sites."""
