"""Histograms of magnitudes, and the amax that each method reads from them.

The range of a histogram is the smallest power of two above every magnitude so far. For a larger magnitude, the range is
doubled and neighboring bins are merged. Doubling is exact in floating point, so a histogram depends only on the values and
not on their order. Its memory does not grow.
"""

from __future__ import annotations

import math

import torch

#: Bins of a histogram, of which at least half are in use. 128 KB a site.
BINS = 1 << 14
#: KL divergence uses at most this number of bins for all but a thousandth of the values, as TensorRT does. Finer bins have too
#: few values, so noise is compared; coarser bins do not separate the body from its outliers.
ENTROPY_BINS = 1 << 11
#: Counts are float32, which is exact up to 2^24.
_CHUNK = 1 << 23


class Histogram:
    """Counts of magnitudes.

    Attributes:
        counts: int64 (BINS,); bin i counts the magnitudes in [i, i + 1) * width.
        width: the width of a bin, a power of two; 0 while all values are zero.
        largest: the exact largest magnitude.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.width = 0.0
        self.largest = 0.0

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    def add(self, tensor: torch.Tensor) -> None:
        """Count the magnitudes of `tensor`, of any shape; its values must be finite."""
        if not tensor.numel():
            return
        magnitudes = tensor.detach().abs().float().flatten()
        self._reach(float(magnitudes.max()))
        if not self.width:  # only zeros so far
            self.counts[0] += magnitudes.numel()
            return
        for chunk in magnitudes.mul_(1 / self.width).split(_CHUNK):
            self.counts += torch.histc(chunk, bins=BINS, min=0, max=BINS).to("cpu", torch.int64)

    def _reach(self, largest: float) -> None:
        """Extend the range to `largest`, and merge neighboring bins."""
        self.largest = max(self.largest, largest)
        if not self.largest:
            return
        # frexp: largest = m * 2^e with m in [0.5, 1). Magnitudes below 2^-100 share the first bins; no scale is that small.
        exponent = max(math.frexp(self.largest)[1], -100)
        width = math.ldexp(1.0, exponent) / BINS
        if self.width and width > self.width:
            self.counts = merge(self.counts, min(BINS, round(width / self.width)))
        self.width = width

    def used(self) -> torch.Tensor:
        """Return the counts up to the bin of the largest magnitude: int64 (bins,), at least one."""
        filled = torch.nonzero(self.counts)
        return self.counts[: int(filled[-1]) + 1 if len(filled) else 1]


def merge(counts: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the counts (bins,) in bins that are `factor` times as wide; the number of bins is unchanged, a multiple of it."""
    merged = torch.zeros_like(counts)
    merged[: len(counts) // factor] = counts.view(-1, factor).sum(1)
    return merged


def percentile_amax(histogram: Histogram, percentile: float) -> float:
    """Return the smallest upper edge of a bin below which at least `percentile` percent of the magnitudes are.

    It is at most one bin above the order statistic. 100 returns the largest magnitude.
    """
    counts = histogram.used()
    # Rounded first, so that 99.9 percent of 1000 values are exactly 999.
    wanted = math.ceil(round(histogram.total * percentile / 100, 6))
    index = int(torch.searchsorted(counts.cumsum(0), max(wanted, 1)))
    return min((index + 1) * histogram.width, histogram.largest)


def mse_amax(histogram: Histogram, num_bits: int) -> float:
    """Return the amax with the smallest mean squared error of quantization. Values are assumed to be uniform within a bin.

    The grid is symmetric: magnitudes have the levels 0 .. 2^(num_bits-1) - 1 times amax / (2^(num_bits-1) - 1).
    """
    if not histogram.largest:
        return 0.0
    counts = histogram.used().double()
    edges = torch.arange(len(counts) + 1, dtype=torch.float64) * histogram.width
    levels = 2 ** (num_bits - 1) - 1

    def best(candidates: torch.Tensor) -> int:
        errors = [float((counts * _squared_error(edges, amax, levels).diff()).sum()) for amax in candidates.tolist()]
        return min(range(len(errors)), key=errors.__getitem__)

    # Candidates up to 8 % apart over the whole histogram, then a quarter of a percent apart around the best of these.
    low, high = min(histogram.width, histogram.largest), histogram.largest
    candidates = torch.logspace(math.log2(low), math.log2(high), 129, base=2, dtype=torch.float64)
    index = best(candidates)
    low, high = float(candidates[max(index - 1, 0)]), float(candidates[min(index + 1, 128)])
    candidates = torch.linspace(low, high, 65, dtype=torch.float64)
    return min(float(candidates[best(candidates)]), histogram.largest)


def _squared_error(x: torch.Tensor, amax: float, levels: int) -> torch.Tensor:
    """Return the integral from 0 to x of (t - quantized(t))^2 dt, float64 (n,); its differences are the errors of bins."""
    step = amax / levels
    inside = x.clamp(max=amax)
    nearest = (inside / step).round()
    rounding = nearest * (step**3 / 12) + (inside - nearest * step) ** 3 / 3
    return rounding + (x - inside) ** 3 / 3


def entropy_amax(histogram: Histogram, num_bits: int) -> float:
    """Return the amax with the smallest Kullback-Leibler divergence between the clipped and the quantized distribution.

    This is TensorRT's INT8 calibration (Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017). Every grid represents zero
    exactly, so zeros must not form a peak: the first bin gets the count of the second.
    """
    if not histogram.largest:
        return 0.0
    factor, body = 1, percentile_amax(histogram, 99.9) / histogram.width
    while body > factor * ENTROPY_BINS:
        factor *= 2
    counts = merge(histogram.counts, factor)
    counts = counts[: int(torch.nonzero(counts)[-1]) + 1]
    return min(entropy_bins(counts, num_bits) * histogram.width * factor, histogram.largest)


def entropy_bins(counts: torch.Tensor, num_bits: int) -> int:
    """Return the number of bins to keep for the smallest divergence.

    For each number i of bins: P is the first i bins, with all clipped counts added to the last. Q is the same bins merged into
    2^(num_bits-1) levels; the count of a level is spread over its bins that are not empty. All i are computed at once, by
    cumulative sums: KL = (sum P log P - sum P log Q) / N - log N + log(sum Q).

    Args:
        counts: int64 (bins,), of which the last is not zero.
        num_bits: the width of the integers.
    """
    levels, bins = 2 ** (num_bits - 1), len(counts)
    if bins <= levels:
        return bins
    c = counts.double()
    c[0] = c[1]
    total = c.sum()
    zero = torch.zeros(1, dtype=torch.float64)
    sums = torch.cat((zero, c.cumsum(0)))
    filled = torch.cat((zero, (c > 0).double().cumsum(0)))
    information = torch.cat((zero, torch.xlogy(c, c).cumsum(0)))

    sizes = torch.arange(levels, bins + 1)
    # Level g of i bins begins at bin ceil(g * i / levels).
    borders = (torch.arange(levels + 1) * sizes[:, None] + levels - 1) // levels
    level_sums = sums[borders].diff()
    level_means = level_sums / filled[borders].diff().clamp_min(1)
    last, clipped = c[sizes - 1], total - sums[sizes]
    p_log_p = information[sizes] - torch.xlogy(last, last) + torch.xlogy(last + clipped, last + clipped)
    p_log_q = torch.xlogy(level_sums, level_means).sum(1) + torch.xlogy(clipped, level_means[:, -1])
    divergence = (p_log_p - p_log_q) / total + torch.log(sums[sizes] / total)
    # Q is zero if the last bin is empty: the clipped counts have no place in Q.
    divergence[(last == 0) & (clipped > 0)] = math.inf
    # The last one of those that are equal up to rounding, because it clips least.
    return int(sizes[torch.nonzero(divergence <= divergence.min() + 1e-12)[-1]])
