"""Training: FP32 fine-tuning, calibration and quantization-aware fine-tuning of a run.

`execution` runs a configuration, and `quantizing` makes a configuration from a model's folder. `finetuning` runs the stages:
`calibrating` the calibration, `stage` the training with `transformers.Trainer` and `callbacks`. `distillation` adds a teacher.
`checkpoints` verifies the Trainer's checkpoints.
"""

__all__ = ["calibrating", "checkpoints", "distillation", "execution", "finetuning", "quantizing", "stage"]
