"""Quantization: named sites, recipes, insertion of TensorQuantizers, calibration."""
