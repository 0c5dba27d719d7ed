"""Calibrators: they see tensors batch by batch, and then say what range a quantizer should have.

Activations: "max", "percentile", "entropy", "mse" and "search" keep the largest magnitude or a histogram of magnitudes,
"ema" a moving average. Weights, seen once and whole: "max" and "mse", per tensor or per index of axis 0. The integers
are -2^(b-1) .. 2^(b-1) - 1 with b = num_bits, and scale = amax / (2^(b-1) - 1): for 2 bits, the four values -2, -1, 0 and
1 times amax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from q8trt.errors import ConfigError
from q8trt.quantization.histogram import Histogram, entropy_amax, mse_amax, percentile_amax

if TYPE_CHECKING:
    from q8trt.quantization.libraries import Calibrator
    from q8trt.quantization.recipe import QuantizerSpec

#: Share of the old average that each batch leaves. Q8BERT (arXiv 1910.06188, section 2.1) trains with such an average;
#: over the few dozens of batches of a calibration, 0.99 is close to the mean of their largest magnitudes.
EMA_DECAY = 0.99
#: Where a search for a site's percentile starts: the best single one on BERT.
SEARCH_START = 99.99


@dataclass
class MaxCalibrator:
    """The largest magnitude seen.

    Attributes:
        axis: None for one amax, shape (); 0 for one per index of the first axis, shape (n, 1, ...).
    """

    axis: int | None = None
    _amax: torch.Tensor | None = None

    def collect(self, tensor: torch.Tensor) -> None:
        """Look at one batch, or a weight: any shape, floating point."""
        amax = _magnitudes(tensor, self.axis).float()
        self._amax = amax if self._amax is None else torch.maximum(self._amax, amax)

    def compute_amax(self) -> torch.Tensor | None:
        """float32; None where nothing was collected."""
        return self._amax


@dataclass
class EmaCalibrator:
    """Exponential moving average of the batches' largest magnitudes, m_t = decay * m_(t-1) + (1 - decay) * max|x_t|.

    It starts at zero and is divided by 1 - decay^t, the sum of its weights, so that the first batch counts no more than
    those after it (Kingma and Ba, arXiv 1412.6980, section 3).
    """

    decay: float = EMA_DECAY
    _sum: float = 0.0
    _weight: float = 0.0

    def collect(self, tensor: torch.Tensor) -> None:
        """Look at one batch: any shape, floating point."""
        self._sum = self.decay * self._sum + (1 - self.decay) * float(_magnitudes(tensor, None))
        self._weight = self.decay * self._weight + (1 - self.decay)

    def compute_amax(self) -> torch.Tensor | None:
        """float32 (); None where nothing was collected."""
        return torch.tensor(self._sum / self._weight) if self._weight else None


@dataclass
class HistogramCalibrator:
    """A histogram of magnitudes, of fixed size, and a function that reads amax from it."""

    answer: Callable[[Histogram], float]
    histogram: Histogram = field(default_factory=Histogram)

    def collect(self, tensor: torch.Tensor) -> None:
        """Look at one batch: any shape, floating point."""
        self.histogram.add(tensor)

    def compute_amax(self) -> torch.Tensor | None:
        """float32 (); None where nothing was collected."""
        return torch.tensor(self.answer(self.histogram)) if self.histogram.total else None


@dataclass
class WeightMseCalibrator:
    """The amax, up to the largest magnitude, at which quantization changes the weight least: by the sum of squares.

    Attributes:
        num_bits: of the integers.
        axis: None for one amax, shape (); 0 for one per index of the first axis, shape (n, 1, ...).
    """

    num_bits: int
    axis: int | None
    _amax: torch.Tensor | None = None

    def collect(self, tensor: torch.Tensor) -> None:
        """Look at the weight, whole; a later call replaces what was seen."""
        weight = tensor.detach().float()
        largest = _magnitudes(weight, self.axis)
        # Shares of the largest magnitude an eighth apart, then a fiftieth apart around the best of each row.
        best = self._search(weight, largest, 1.125 ** -torch.arange(32.0))
        self._amax = self._search(weight, best, 1.02 ** torch.arange(-6.0, 7.0)).minimum(largest)

    def _search(self, weight: torch.Tensor, amax: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Whichever of `shares` * `amax` has the least error, for each amax: its shape."""
        best, least = amax, torch.full_like(amax, torch.inf)
        for share in shares.tolist():
            error = self._error(weight, amax * share)
            best, least = torch.where(error < least, amax * share, best), torch.minimum(error, least)
        return best

    def _error(self, weight: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
        """Sum of squares of what quantization changes, per amax: its shape."""
        levels = 2 ** (self.num_bits - 1)
        scale = (amax / (levels - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        difference = (weight / scale).round_().clamp_(-levels, levels - 1).mul_(scale).sub_(weight).square_()
        return difference.sum() if self.axis is None else difference.sum(_other_axes(weight), keepdim=True)

    def compute_amax(self) -> torch.Tensor | None:
        """float32; None where nothing was collected."""
        return self._amax


def _other_axes(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(1, tensor.ndim))


def _magnitudes(tensor: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The largest magnitude: (), or for axis 0 (n, 1, ...)."""
    magnitudes = tensor.detach().abs()
    return magnitudes.max() if axis is None else magnitudes.amax(_other_axes(tensor), keepdim=True)


def new_calibrator(spec: QuantizerSpec) -> Calibrator:
    """A fresh calibrator for `spec.calibrator`; "search" answers `SEARCH_START` until the search has chosen.

    Raises:
        ConfigError: the range is fixed, so that there is nothing to calibrate.
    """
    if spec.calibrator == "mse" and (spec.num_bits < 8 or spec.axis is not None):
        # A weight: activations have 8 bits and one scale. With few bits the grid is not symmetric, nor the histogram fine.
        return WeightMseCalibrator(spec.num_bits, spec.axis)
    made: dict[str, Callable[[], Calibrator]] = {
        "max": lambda: MaxCalibrator(spec.axis),
        "ema": EmaCalibrator,
        "percentile": lambda: HistogramCalibrator(partial(percentile_amax, percentile=spec.percentile)),
        "search": lambda: HistogramCalibrator(partial(percentile_amax, percentile=SEARCH_START)),
        "mse": lambda: HistogramCalibrator(partial(mse_amax, num_bits=spec.num_bits)),
        "entropy": lambda: HistogramCalibrator(partial(entropy_amax, num_bits=spec.num_bits)),
    }
    if spec.calibrator not in made:
        raise ConfigError(f"no calibrator {spec.calibrator!r}: a fixed range is taken as the recipe gives it")
    return made[spec.calibrator]()
