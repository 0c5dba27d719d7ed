"""The treatment of amax during quantization-aware fine-tuning: ``recipe.qat.ranges``.

With s = amax / Qp, Qp = 2^(b-1) - 1 and Qn = 2^(b-1), a quantizer computes y = s * clamp(round(x / s), -Qn, Qp). The
gradient of x passes unchanged inside the range, [-Qn * s, Qp * s], and is zero outside. For amax:

    frozen   amax stays as calibrated.
    ema      amax <- decay * amax + (1 - decay) * max|x| for activations, without padding; the largest magnitude for
             weights (Q8BERT, arXiv 1910.06188, section 2.1).
    lsq      the step size is learned (Esser et al., arXiv 1902.08153, equation 3 and section 2.2):
             dy/ds = round(x / s) - x / s inside, -Qn or Qp outside; the sum is multiplied by 1 / sqrt(N * Qp).
    pact     the clipping value is learned, for activations: dy/d(amax) = sign(x) outside, 0 inside (Choi et al., arXiv
             1805.06085, section 3; below the range -Qn / Qp, because signed integers reach one step further). Weights as
             with ema.

A fixed range (``calibrator: fixed``) never changes. In the paper, weights use their largest magnitude. Weights whose recipe
has a tighter range (``calibrator: mse``) keep that range.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.recipe import Recipe
from q8trt.quantization.sites import ACTIVATION, encoder_sites

#: Smallest learned amax. Quantizers treat values near 2^-24, FP16's smallest number, as zero.
SMALLEST = 1e-6


class _FakeQuantize(torch.autograd.Function):
    """The forward of the quantizer with the gradients in the module's docstring."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, amax: torch.Tensor, quantizer: _Learned) -> torch.Tensor:
        """Map any shape to the same; `amax` broadcasts to it."""
        outputs = quantizer.quantized(inputs)
        ctx.save_for_backward(inputs, outputs, amax)
        ctx.largest, ctx.learns_step = float(2 ** (quantizer.num_bits - 1) - 1), quantizer.learns_step
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Return the gradients, computed from y: inside, s * (round(x / s) - x / s) is y - x; outside, y is the bound."""
        inputs, outputs, amax = ctx.saved_tensors
        inside = (inputs <= amax) & (inputs >= amax * (-(ctx.largest + 1) / ctx.largest))
        moved = outputs - inputs.where(inside, 0) if ctx.learns_step else outputs.masked_fill(inside, 0)
        to_amax = (gradient.float() * moved.float()).sum_to_size(amax.shape) / amax
        if ctx.learns_step:
            to_amax /= math.sqrt(inputs.numel() / amax.numel() * ctx.largest)
        return gradient.where(inside, 0), to_amax, None


class _Unquantized(torch.autograd.Function):
    """The identity with amax as a second input, because DDP requires that every parameter is used in every step."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
        """Map any shape to the same."""
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient, and None for amax."""
        return gradient, None


class _Learned(nn.Module):
    """A mixin for a TensorQuantizer whose `_amax` is a parameter."""

    learns_step: bool
    num_bits: int
    _amax: nn.Parameter
    _disabled: bool
    _if_quant: bool

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map a tensor of any shape to the same shape; the values are bit-identical to the original quantizer's."""
        if self._disabled or not self.training:
            outputs: torch.Tensor = super().forward(inputs)
            return outputs
        inputs = _smoothed(self, inputs)
        if not self._if_quant:
            return _Unquantized.apply(inputs, self._amax)
        return _FakeQuantize.apply(inputs, self._amax, self)

    def quantized(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the original forward of the quantizer for a tensor that is already smoothed."""
        before, self._enable_pre_quant_scale = getattr(self, "_enable_pre_quant_scale", True), False
        try:
            outputs: torch.Tensor = super().forward(inputs)
            return outputs
        finally:
            self._enable_pre_quant_scale = before


def _smoothed(quantizer: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Return the tensor that the quantizer rounds: `inputs` times SmoothQuant's scale, if it has one."""
    scale = getattr(quantizer, "pre_quant_scale", None)
    return inputs if scale is None else inputs * scale


@functools.cache
def _learned_class(original: type, learns_step: bool) -> type:
    return type(f"Learned{original.__name__}", (_Learned, original), {"learns_step": learns_step})


def _learn(quantizer: Any, learns_step: bool) -> nn.Parameter:
    """Make `_amax` a parameter of the same name, so the keys of the state dict do not change, and return it."""
    amax = quantizer._buffers.pop("_amax")
    quantizer.register_parameter("_amax", nn.Parameter(amax.detach().clone()))
    original: Any = type(quantizer)
    quantizer.__class__ = _learned_class(original, learns_step)
    learned: nn.Parameter = quantizer._amax
    return learned


def _unlearn(quantizer: Any) -> None:
    """Make `_amax` a buffer again."""
    amax = quantizer._parameters.pop("_amax").detach()
    quantizer.__class__ = type(quantizer).__mro__[2]
    quantizer.register_buffer("_amax", amax)


class _Batch:
    """The attention mask of a batch, int64 (B, S) or None, which the model shares with its observed quantizers."""

    mask: torch.Tensor | None = None


def _keep_mask(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Store the attention mask of a batch. A forward pre-hook of the model."""
    model._batch.mask = kwargs.get("attention_mask")


def _observe(quantizer: Any, args: tuple[torch.Tensor, ...]) -> None:
    """Record the largest magnitude since the last step, without padding. A forward pre-hook of a quantizer.

    The value is an attribute of the quantizer, not of a closure, so a copy of the model has its own value.
    """
    if not quantizer.training:
        return
    magnitudes, mask = _smoothed(quantizer, args[0].detach()).abs(), quantizer._batch.mask
    if mask is not None and magnitudes.ndim > 2:  # (B, S, H) or (B, heads, S, D); (B, H) has no padding
        magnitudes.mul_(mask[:, :, None] if magnitudes.ndim == 3 else mask[:, None, :, None])
    largest, seen = magnitudes.amax().float(), quantizer._seen
    quantizer._seen = largest if seen is None else torch.maximum(seen, largest)


def _largest(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of `tensor` over the axes in which the amax `like` has one element, in its shape."""
    if like.numel() == 1:
        return tensor.detach().abs().amax().reshape(like.shape)
    axes = [axis for axis in range(tensor.ndim) if like.shape[axis] == 1]
    return tensor.detach().abs().amax(dim=axes, keepdim=True)


class Ranges:
    """The treatment of each amax while `model` trains, see the module's docstring. `end` restores the quantizers.

    Args:
        model: quantized by `recipe` and calibrated.
        recipe: the recipe, with the treatment ``recipe.qat`` and the fixed ranges.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        self.decay = recipe.qat.ema_decay
        self._learned: list[Any] = []
        self._observed: list[Any] = []
        self._followed: list[tuple[Any, nn.Parameter]] = []
        self._handles: list[Any] = []
        self._before: list[torch.Tensor] = []
        self._model = model
        batch, quantizers = _Batch(), model_quantizers(model)
        for site in encoder_sites(model):
            spec = recipe.spec(site)
            if spec is None or spec.calibrator == "fixed" or recipe.qat.ranges == "frozen":
                continue
            quantizer: Any = quantizers[site.key]
            if recipe.qat.ranges == "lsq" or (recipe.qat.ranges == "pact" and site.kind == ACTIVATION):
                _learn(quantizer, learns_step=recipe.qat.ranges == "lsq")
                self._learned.append(quantizer)
            elif site.kind == ACTIVATION:
                quantizer._seen, quantizer._batch = None, batch
                self._handles.append(quantizer.register_forward_pre_hook(_observe))
                self._observed.append(quantizer)
            elif spec.calibrator == "max":
                self._followed.append((quantizer, model.get_parameter(site.parameter)))
        if self._observed:
            self._model._batch = batch
            self._handles.append(model.register_forward_pre_hook(_keep_mask, with_kwargs=True))

    def parameters(self) -> list[nn.Parameter]:
        """Return the learned amax, which need a separate optimizer group without weight decay; see `attach`."""
        return [quantizer._amax for quantizer in self._learned]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the ranges at each step of `optimizer`.

        The step of the optimizer is applied to log(amax): amax <- amax * exp(step). Ranges are between 0.05 and 200, and
        Adam's steps are about as large as the learning rate. With a relative step, one rate fits all ranges, and amax stays
        positive. (Jain et al., arXiv 1903.08066, section 3, also train thresholds in the log domain.)
        """
        self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._before_step()))
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self._after_step()))

    @torch.no_grad()
    def _before_step(self) -> None:
        learned: list[torch.Tensor] = [*self.parameters()]
        if learned:
            self._before = [amax.clone() for amax in learned]
            torch._foreach_zero_(learned)

    @torch.no_grad()
    def _after_step(self) -> None:
        learned: list[torch.Tensor] = [*self.parameters()]
        if learned:
            torch._foreach_exp_(learned)
            torch._foreach_mul_(learned, tuple(self._before))
            torch._foreach_clamp_min_(learned, SMALLEST)
        self._average()
        for quantizer, weight in self._followed:
            largest = _largest(weight, quantizer._amax)
            quantizer._amax.copy_(largest.where(largest > 0, quantizer._amax))  # a row of zeros has no scale

    def _average(self) -> None:
        """Update the moving averages. All processes use the same largest magnitudes."""
        seen = [quantizer for quantizer in self._observed if quantizer._seen is not None]
        if not seen:
            return
        largest = torch.stack([quantizer._seen for quantizer in seen])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        amax = torch.stack([quantizer._amax.reshape(()) for quantizer in seen])
        # An overflow of mixed precision must not enter the average, because it would stay there.
        averaged = amax.lerp(largest, 1 - self.decay).where(largest.isfinite(), amax)
        for quantizer, value in zip(seen, averaged.unbind(), strict=True):
            quantizer._amax.fill_(value)
            quantizer._seen = None

    def end(self) -> None:
        """Restore the quantizers, with the ranges from training."""
        for handle in self._handles:
            handle.remove()
        for quantizer in self._observed:
            del quantizer._seen, quantizer._batch
        if self._observed:
            del self._model._batch
        for quantizer in self._learned:
            _unlearn(quantizer)
        self._handles, self._observed, self._learned, self._followed = [], [], [], []


@contextlib.contextmanager
def apply_ranges(model: nn.Module, recipe: Recipe) -> Iterator[Ranges]:
    """Apply `Ranges` within this context, and end them also after an error."""
    ranges = Ranges(model, recipe)
    try:
        yield ranges
    finally:
        ranges.end()
