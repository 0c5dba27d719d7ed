"""Parity: the stages between a model and its engine side by side, and the first layer where two of them part.

    torch FP32 -> (torch, quantizers off) -> torch fake-quant -> ONNX Runtime -> TensorRT

Logits alone cannot separate a fault from rounding: a value between two INT8 steps may fall either way, and the effect of
one such value grows from layer to layer. So each layer of a stage is also run by itself, on the hidden states of the stage
before it. Between stages of the same arithmetic it may then differ by its own rounding alone, and a layer that differs by
more is the one at fault. Hidden states are compared where the attention mask is 1.
"""

from q8trt.evaluation.config import ParityConfig
from q8trt.evaluation.parity.check import check_parity
from q8trt.evaluation.parity.stages import engines_of

__all__ = ["ParityConfig", "check_parity", "engines_of"]
