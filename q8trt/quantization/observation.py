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
    """Raise a QuantizationError that names the site `key` if `tensor` has NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise QuantizationError(f"{key} has NaN or infinity; check the checkpoint that is being quantized")


def text_of(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the elements of `tensor` at positions of text, without padding, which does not affect the logits.

    Args:
        tensor: (batch, sequence, H), (batch, heads, sequence, D), or (batch, H), which has no padding.
        mask: bool (batch, sequence), True for text; None for no padding.

    Returns:
        (positions, H) or (positions, heads, D); `tensor` if it has no padding or `mask` is None.
    """
    if mask is None or tensor.ndim < 3:
        return tensor
    return (tensor.transpose(1, 2) if tensor.ndim == 4 else tensor)[mask]


def answers(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch, (batch, outputs), or (tokens, outputs) without padding for a head that answers each token."""
    mask = batch.get("attention_mask")
    return text_of(model(**batch).logits, None if mask is None else mask.bool())


@contextlib.contextmanager
def _watched(
    quantizers: Mapping[str, Any], watched: Mapping[str, Any], see: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Make quantizers return their inputs unchanged, and pass those of `watched` to `see`, within this context."""

    def look(key: str, quantizer: Any, tensor: torch.Tensor) -> None:
        scale = getattr(
            quantizer, "pre_quant_scale", None
        )  # the factor of SmoothQuant, which the quantizer applies first
        see(key, tensor if scale is None else tensor * scale)

    with contextlib.ExitStack() as stack:
        for key, quantizer in watched.items():
            hook = quantizer.register_forward_pre_hook(lambda module, args, key=key: look(key, module, args[0]))
            stack.enter_context(hook)
        for quantizer in quantizers.values():
            stack.callback(quantizer.enable_quant)
            quantizer.disable_quant()  # not disable(), because attention does not call disabled quantizers
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
    """Run `batches` through `model` in floating point, and pass the inputs of activation quantizers to `see`.

    Args:
        model: quantized, in evaluation mode, with its quantizers enabled.
        quantizers: site key -> quantizer, all of the model.
        watched: keys of the quantizers to watch.
        batches: keyword arguments of the model.
        see: called with a site's key and its input, without padding and after smoothing.
        on_batch: called after each batch.

    Raises:
        QuantizationError: the input of a watched site has NaN or infinity.
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
