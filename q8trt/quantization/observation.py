"""Observation of the inputs of quantizers while the model computes in floating point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from q8trt.errors import QuantizationError
from q8trt.quantization.sites import POSITION_SITES

Batch = Mapping[str, torch.Tensor]


def check_finite(key: str, tensor: torch.Tensor) -> None:
    """Raise a QuantizationError that names the site `key` if `tensor` holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise QuantizationError(f"{key} carries NaN or infinity; check the checkpoint that is being quantized")


def text_of(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the elements at positions of text. Positions of padding do not affect the logits.

    Args:
        tensor: (batch, sequence, H), (batch, heads, sequence, D), or (batch, H), which has no padding.
        mask: bool (batch, sequence), True for text; None for no padding.

    Returns:
        (positions, ...) if there is padding, else `tensor`.
    """
    if mask is None or tensor.ndim < 3:
        return tensor
    return (tensor.transpose(1, 2) if tensor.ndim == 4 else tensor)[mask]


def answers(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch: (batch, outputs), or of a head that answers each token (tokens, outputs), without padding."""
    mask = batch.get("attention_mask")
    return text_of(model(**batch).logits, None if mask is None else mask.bool())


@contextlib.contextmanager
def _watched(
    quantizers: Mapping[str, Any], watched: Mapping[str, Any], see: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Let quantizers return their inputs unchanged and report them, within this context."""

    def look(key: str, quantizer: Any, tensor: torch.Tensor) -> None:
        scale = getattr(quantizer, "pre_quant_scale", None)  # SmoothQuant's: applied before anything else
        see(key, tensor if scale is None else tensor * scale)

    with contextlib.ExitStack() as stack:
        for key, quantizer in watched.items():
            hook = quantizer.register_forward_pre_hook(lambda module, args, key=key: look(key, module, args[0]))
            stack.enter_context(hook)
        for quantizer in quantizers.values():
            stack.callback(quantizer.enable_quant)
            quantizer.disable_quant()  # not disable(): attention passes by quantizers that are disabled
        yield


@torch.no_grad()
def observe(
    model: nn.Module,
    quantizers: Mapping[str, Any],
    watched: Iterable[str],
    batches: Iterable[Batch],
    see: Callable[[str, torch.Tensor], None],
    on_batch: Callable[[Batch], None] | None = None,
) -> None:
    """Run `batches` through `model` in floating point and report the inputs of its activation quantizers.

    Args:
        model: quantized, in evaluation mode, its quantizers enabled.
        quantizers: site key -> quantizer, all of them.
        watched: keys of the quantizers to watch.
        batches: keyword arguments of the model.
        see: called with a site's key and its input, without padding.
        on_batch: called after each batch.

    Raises:
        QuantizationError: a watched site carries NaN or infinity.
    """
    device = next(model.parameters()).device
    mask: torch.Tensor | None = None

    def see_text(key: str, tensor: torch.Tensor) -> None:
        text = tensor if key.rpartition(".")[2] in POSITION_SITES else text_of(tensor, mask)
        check_finite(key, text)
        see(key, text)

    with _watched(quantizers, {key: quantizers[key] for key in watched}, see_text):
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            mask = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
            model(**inputs)
            if on_batch:
                on_batch(batch)
