"""Training: FP32 fine-tuning, calibration and quantization-aware fine-tuning of a run.

`execution` takes a run from its options to its end, `quantizing` reads these from a model's folder, `finetuning` does the
stages, `calibrating` is the calibration among them, `stage` trains one on `transformers.Trainer`, `distillation` adds a
teacher, `checkpoints` are the Trainer's own.
"""

__all__ = ["calibrating", "checkpoints", "distillation", "execution", "finetuning", "quantizing", "stage"]
