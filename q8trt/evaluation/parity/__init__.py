"""Parity: a comparison of the stages from a model to its engine, and the first layer in which two stages differ.

    torch FP32 -> (torch, quantizers off) -> torch fake-quant -> ONNX Runtime -> TensorRT

Logits alone cannot distinguish an error from rounding. A value between two INT8 steps may be rounded either way, and the effect
grows from layer to layer. So each layer of a stage also runs alone, on the hidden states of the previous stage. If both stages
have the same arithmetic, the layer may differ only by its own rounding. A layer that differs by more has an error. Hidden states
are compared at positions whose attention mask is 1.
"""

from q8trt.evaluation.config import ParityConfig
from q8trt.evaluation.parity.check import check_parity
from q8trt.evaluation.parity.stages import engines_of

__all__ = ["ParityConfig", "check_parity", "engines_of"]
