"""Calibrators, which observe tensors batch by batch and choose a range, and their names in recipes.

The integers are -2^(b-1) .. 2^(b-1) - 1 with b = num_bits, and scale = amax / (2^(b-1) - 1). With 2 bits, the values are
-2, -1, 0 and 1 times amax. This module does not import torch when it is imported, because recipes read its names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from q8trt.quantization.histogram import Histogram

#: Weight of the old average at each batch. Q8BERT (arXiv 1910.06188, section 2.1) trains with such an average. Over the few
#: dozen batches of a calibration, 0.99 is close to the mean of their largest magnitudes.
EMA_DECAY = 0.99
#: The percentile from which the search starts, the best single one on BERT.
SEARCH_START = 99.99


class Calibrator(Protocol):
    """An observer of tensors that chooses a range."""

    def collect(self, tensor: torch.Tensor) -> None:
        """Observe one batch of an activation, or a whole weight: any shape, floating point."""

    def compute_amax(self) -> torch.Tensor | None:
        """Return the range, float32, () per tensor or (n, 1, ...) for axis 0; None if nothing was collected."""


@dataclass
class MaxCalibrator:
    """The largest magnitude: of the tensor, or of each index of the first axis for axis 0."""

    axis: int | None = None
    _amax: torch.Tensor | None = None

    def collect(self, tensor: torch.Tensor) -> None:
        """See `Calibrator`."""
        amax = _magnitudes(tensor, self.axis).float()
        self._amax = amax if self._amax is None else self._amax.maximum(amax)

    def compute_amax(self) -> torch.Tensor | None:
        """See `Calibrator`."""
        return self._amax


@dataclass
class EmaCalibrator:
    """Exponential moving average of the batches' largest magnitudes, m_t = decay * m_(t-1) + (1 - decay) * max|x_t|.

    It starts at zero and is divided by 1 - decay^t, the sum of its weights, which removes the bias of the start (Kingma and
    Ba, arXiv 1412.6980, section 3).
    """

    decay: float = EMA_DECAY
    _sum: float = 0.0
    _weight: float = 0.0

    def collect(self, tensor: torch.Tensor) -> None:
        """See `Calibrator`."""
        self._sum = self.decay * self._sum + (1 - self.decay) * float(_magnitudes(tensor, None))
        self._weight = self.decay * self._weight + (1 - self.decay)

    def compute_amax(self) -> torch.Tensor | None:
        """See `Calibrator`."""
        import torch

        return torch.tensor(self._sum / self._weight) if self._weight else None


@dataclass
class HistogramCalibrator:
    """A histogram of magnitudes, of fixed size, and a function that reads amax from it."""

    histogram: Histogram
    read: Callable[[Histogram], float]

    def collect(self, tensor: torch.Tensor) -> None:
        """See `Calibrator`."""
        self.histogram.add(tensor)

    def compute_amax(self) -> torch.Tensor | None:
        """See `Calibrator`."""
        import torch

        return torch.tensor(self.read(self.histogram)) if self.histogram.total else None


@dataclass
class WeightMseCalibrator:
    """The amax, up to the largest magnitude, with the smallest sum of squared quantization errors of the weight.

    A second weight replaces the first. For `axis` see `MaxCalibrator`.
    """

    num_bits: int
    axis: int | None
    _amax: torch.Tensor | None = None

    def collect(self, tensor: torch.Tensor) -> None:
        """See `Calibrator`."""
        import torch

        weight = tensor.detach().float()
        largest = _magnitudes(weight, self.axis)
        # Shares of the largest magnitude with the ratio 1.125, then with the ratio 1.02 around the best one of each row.
        best = self._search(weight, largest, 1.125 ** -torch.arange(32.0))
        self._amax = self._search(weight, best, 1.02 ** torch.arange(-6.0, 7.0)).minimum(largest)

    def _search(self, weight: torch.Tensor, amax: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return for each element of `amax` the product with the one of `shares` that has the least error."""
        best, least = amax, amax.new_full(amax.shape, float("inf"))
        for share in shares.tolist():
            error = self._error(weight, amax * share)
            best, least = (amax * share).where(error < least, best), error.minimum(least)
        return best

    def _error(self, weight: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
        """Return the sum of squared quantization errors, in the shape of `amax`."""
        import torch

        levels = 2 ** (self.num_bits - 1)
        scale = (amax / (levels - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        difference = (weight / scale).round_().clamp_(-levels, levels - 1).mul_(scale).sub_(weight).square_()
        return difference.sum() if self.axis is None else difference.sum(_other_axes(weight), keepdim=True)

    def compute_amax(self) -> torch.Tensor | None:
        """See `Calibrator`."""
        return self._amax


def _other_axes(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(range(1, tensor.ndim))


def _magnitudes(tensor: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return the largest magnitude, () per tensor or (n, 1, ...) for axis 0."""
    magnitudes = tensor.detach().abs()
    return magnitudes.max() if axis is None else magnitudes.amax(_other_axes(tensor), keepdim=True)


def _percentile(num_bits: int, axis: int | None, percentile: float) -> Calibrator:
    from q8trt.quantization.histogram import Histogram, percentile_amax

    return HistogramCalibrator(Histogram(), partial(percentile_amax, percentile=percentile))


def _entropy(num_bits: int, axis: int | None, percentile: float) -> Calibrator:
    from q8trt.quantization.histogram import Histogram, entropy_amax

    return HistogramCalibrator(Histogram(), partial(entropy_amax, num_bits=num_bits))


def _mse(num_bits: int, axis: int | None, percentile: float) -> Calibrator:
    from q8trt.quantization.histogram import Histogram, mse_amax

    # Only weights have fewer bits or an axis. With few bits the grid is asymmetric, and the histogram is too coarse.
    if num_bits < 8 or axis is not None:
        return WeightMseCalibrator(num_bits, axis)
    return HistogramCalibrator(Histogram(), partial(mse_amax, num_bits=num_bits))


@dataclass(frozen=True)
class Method:
    """A method to choose a range.

    Attributes:
        new: function of (num_bits, axis, percentile) that returns a new calibrator; None if the recipe has the range.
        for_weights: the method is also for weights, not only for activations.
    """

    new: Callable[[int, int | None, float], Calibrator] | None
    for_weights: bool = False


#: Name in recipes -> method. A new calibrator is an entry here.
CALIBRATORS: Mapping[str, Method] = {
    "max": Method(lambda num_bits, axis, _: MaxCalibrator(axis), for_weights=True),  # the largest magnitude
    "percentile": Method(_percentile),  # of a histogram of magnitudes
    "entropy": Method(_entropy),  # least KL divergence
    "mse": Method(_mse, for_weights=True),  # least squared error
    "ema": Method(lambda *_: EmaCalibrator()),  # moving average of the batches' largest magnitudes
    # The percentile that changes the model's logits least, searched site by site, see `percentile_search`.
    "search": Method(lambda num_bits, axis, _: _percentile(num_bits, axis, SEARCH_START)),
    "fixed": Method(None),  # the recipe's `amax`
}
