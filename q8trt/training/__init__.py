"""Training: FP32 fine-tuning, calibration and quantization-aware fine-tuning of a run.

`finetuning` does the stages of a run, `stage` trains one on `transformers.Trainer`, `distillation` adds a teacher,
`checkpoints` are the Trainer's own. All of them need torch.
"""

__all__ = ["checkpoints", "distillation", "execution", "finetuning", "stage"]
