"""Training: FP32 fine-tuning, calibration and quantization-aware fine-tuning of a run."""
