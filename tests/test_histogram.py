"""Histograms: what they count against NumPy, and the ranges that are read from them against ModelOpt, SciPy and the raw
values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from q8trt.quantization.histogram import (
    BINS,
    Histogram,
    entropy_amax,
    entropy_bins,
    merge,
    mse_amax,
    percentile_amax,
)

DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda g: g.normal(size=99_991),
    "heavy": lambda g: g.standard_t(3, size=99_991),
    "gelu": lambda g: torch.nn.functional.gelu(torch.from_numpy(g.normal(size=99_991) * 2)).numpy(),
    "uniform": lambda g: g.uniform(-3, 3, size=99_991),
    "outlier": lambda g: np.append(g.normal(size=99_991), 222.0),  # as BERT's first residual
    "tiny": lambda g: g.normal(size=99_991) * 1e-20,
    "huge": lambda g: g.normal(size=99_991) * 1e37,
}


@pytest.fixture(params=DISTRIBUTIONS)
def values(request: pytest.FixtureRequest) -> np.ndarray:
    return DISTRIBUTIONS[request.param](np.random.default_rng(7)).astype(np.float32)


def histogram_of(*batches: np.ndarray | torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(torch.as_tensor(batch))
    return histogram


def test_counts_are_numpys(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    edges = np.arange(BINS + 1) * histogram.width
    np.testing.assert_array_equal(histogram.counts.numpy(), np.histogram(np.abs(values.astype(np.float64)), edges)[0])
    assert histogram.largest == np.abs(values).max()
    assert histogram.width * BINS / 2 <= histogram.largest < histogram.width * BINS
    assert histogram.total == len(values)


def test_values_on_an_edge_belong_to_the_bin_above() -> None:
    histogram = histogram_of(np.array([0.0, 1.0, 1.0, 2.0, np.nextafter(np.float32(2), np.float32(0))], np.float32))
    assert histogram.width == 4 / BINS
    counted = {int(index): int(histogram.counts[index]) for index in histogram.counts.nonzero()}
    assert counted == {0: 1, BINS // 4: 2, BINS // 2 - 1: 1, BINS // 2: 1}


@pytest.mark.parametrize("order", [1, -1])
def test_neither_batches_nor_their_order_change_it(values: np.ndarray, order: int) -> None:
    whole = histogram_of(values)
    # Sorted by magnitude, so that the range doubles again and again, from zeros on.
    sorted_values = values[np.argsort(np.abs(values))]
    parts = histogram_of(*np.array_split(sorted_values, 37)[::order])
    assert torch.equal(parts.counts, whole.counts)
    assert (parts.width, parts.largest) == (whole.width, whole.largest)


@pytest.mark.parametrize("first", [0.0, 1e-38, 1e-6])
def test_a_range_far_from_the_first_batches(first: float) -> None:
    """A case in which ModelOpt's histogram would add bins without end."""
    histogram = histogram_of(np.full((2, 3), first, np.float32), np.full(5, 300.0, np.float32))
    assert histogram.counts.shape == (BINS,)
    assert (int(histogram.counts[0]), histogram.total) == (6, 11)
    assert percentile_amax(histogram, 100) == 300.0


def test_counts_beyond_what_float32_counts() -> None:
    histogram = Histogram()
    histogram.add(torch.ones(1).expand(2**24 + 3))
    assert histogram.total == 2**24 + 3


def test_shapes_types_and_what_is_not_there() -> None:
    tensor = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    before = tensor.clone()
    histogram = histogram_of(tensor.requires_grad_(), torch.empty(0, 3), tensor.detach().to(torch.bfloat16))
    assert histogram.total == 720
    assert torch.equal(tensor, before)
    assert not histogram.counts.requires_grad


def test_memory_is_fixed() -> None:
    histogram = Histogram()
    generator, sizes = torch.Generator().manual_seed(0), set()
    for number in range(50):
        histogram.add(torch.randn(100, generator=generator) * 1.7**number)
        sizes.add(histogram.counts.untyped_storage().nbytes())
    assert sizes == {BINS * 8}


def test_merge() -> None:
    assert merge(torch.arange(8), 2).tolist() == [1, 5, 9, 13, 0, 0, 0, 0]
    assert merge(torch.arange(8), 8).tolist() == [28, 0, 0, 0, 0, 0, 0, 0]
    assert merge(torch.arange(8), 1).tolist() == list(range(8))


@pytest.mark.parametrize("percentile", [50.5, 90, 99.9, 99.99, 99.999, 100])
def test_percentile(values: np.ndarray, percentile: float) -> None:
    """The order statistic, or up to one bin more."""
    histogram = histogram_of(values)
    amax = percentile_amax(histogram, percentile)
    exact = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    assert exact <= amax <= exact + histogram.width
    if percentile == 100:
        assert amax == np.abs(values).max()


def test_percentile_of_whole_numbers() -> None:
    """99.9 percent of 41000 values are 40959, not one more as floating point has it (40959.00000000001)."""
    histogram = histogram_of(torch.arange(1.0, 41001.0))
    assert histogram.width == 4
    assert percentile_amax(histogram, 99.9) == 40960


def squared_error(values: np.ndarray, amax: float, num_bits: int) -> float:
    levels = 2 ** (num_bits - 1) - 1
    step = amax / levels
    return float(np.square(np.clip(np.round(values / step), -levels, levels) * step - values).mean())


@pytest.mark.parametrize("num_bits", [8, 4, 2])
def test_mse_is_the_best_on_the_raw_values(values: np.ndarray, num_bits: int) -> None:
    magnitudes = np.abs(values.astype(np.float64))
    found = squared_error(magnitudes, mse_amax(histogram_of(values), num_bits), num_bits)
    candidates = np.geomspace(magnitudes.max() / 500, magnitudes.max(), 1000)
    best = min(squared_error(magnitudes, amax, num_bits) for amax in candidates)
    assert found <= 1.005 * best


NORMAL_TO_UNIFORM = ["normal", "heavy", "gelu", "uniform"]


def modelopt_amax(values: np.ndarray, method: str, **options: float) -> float:
    from modelopt.torch.quantization.calib import HistogramCalibrator

    calibrator = HistogramCalibrator(num_bits=8, num_bins=2048)
    calibrator.collect(torch.from_numpy(values))
    return float(calibrator.compute_amax(method, **options))


@pytest.mark.parametrize("name", NORMAL_TO_UNIFORM)
def test_percentile_is_modelopts(name: str) -> None:
    """It answers the lower edge of a bin, we the upper edge of one of ours."""
    values = DISTRIBUTIONS[name](np.random.default_rng(7)).astype(np.float32)
    theirs = modelopt_amax(values, "percentile", percentile=99.99)
    assert abs(percentile_amax(histogram_of(values), 99.99) - theirs) <= 1.5 * np.abs(values).max() / 2048


@pytest.mark.parametrize("name", NORMAL_TO_UNIFORM)
def test_mse_is_modelopts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 3 %, as the minimum is flat."""
    from modelopt.torch.quantization.calib import histogram

    # ModelOpt 0.47 passes num_bits in the place of the bias that its function has gained since.
    fake_quant = histogram.fake_tensor_quant
    monkeypatch.setattr(
        histogram, "fake_tensor_quant", lambda x, amax, bits, unsigned: fake_quant(x, amax, None, bits, unsigned)
    )
    values = DISTRIBUTIONS[name](np.random.default_rng(7)).astype(np.float32)
    assert mse_amax(histogram_of(values), 8) == pytest.approx(modelopt_amax(values, "mse", stride=8), rel=0.03)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tail", [2.5, 5.0, 30.0])
def test_entropy_keeps_as_many_bins_as_modelopts(seed: int, tail: float) -> None:
    from modelopt.torch.quantization.calib.histogram import _compute_amax_entropy

    values = np.abs(np.random.default_rng(seed).standard_t(tail, size=30_000))
    counts, _ = np.histogram(values, bins=400, range=(0, values.max()))
    # Its amax is the number of bins when the edges are numbers. It changes the counts that it is given.
    theirs = _compute_amax_entropy(counts.copy(), np.arange(401.0), num_bits=8, unsigned=False)
    assert entropy_bins(torch.from_numpy(counts), 8) == int(theirs)
    assert counts[-1] > 0


@pytest.mark.parametrize("num_bits", [4, 5])
def test_entropy_of_every_candidate_by_scipy(num_bits: int) -> None:
    counts = np.random.default_rng(3).poisson(500 * np.exp(-np.arange(90) / 12.0)).astype(float)
    counts = counts[: int(np.flatnonzero(counts)[-1]) + 1]
    found = entropy_bins(torch.from_numpy(counts).long(), num_bits)
    counts[0] = counts[1]
    levels, divergences = 2 ** (num_bits - 1), {}
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        level = np.array([next(g for g in range(levels) if b < (g + 1) * kept / levels) for b in range(kept)])
        for g in range(levels):
            filled = (level == g) & (counts[:kept] > 0)
            q[filled] = counts[:kept][filled].mean() if filled.any() else 0
        divergences[kept] = entropy(p, q)
    least = min(divergences.values())
    assert divergences[found] == pytest.approx(least, abs=1e-12)
    assert levels < found < len(counts)


def test_entropy_clips_an_outlier_and_keeps_a_plateau() -> None:
    generator = np.random.default_rng(0)
    body = generator.normal(size=99_991).astype(np.float32)
    alone = entropy_amax(histogram_of(body), 8)
    assert 3 < alone < np.abs(body).max() + 0.01
    assert entropy_amax(histogram_of(np.append(body, np.float32(222))), 8) == pytest.approx(alone, rel=0.15)
    # Nothing is gained by clipping what is spread evenly.
    assert entropy_amax(histogram_of(generator.uniform(-3, 3, 99_991).astype(np.float32)), 8) > 2.95


def test_few_values() -> None:
    """Fewer bins than levels, one value, only zeros."""
    three = histogram_of(np.full(9, -3.0, np.float32))
    zeros = histogram_of(np.zeros(9, np.float32))
    for amax in (lambda h: percentile_amax(h, 99.99), lambda h: mse_amax(h, 8), lambda h: entropy_amax(h, 8)):
        assert amax(three) == pytest.approx(3.0, abs=three.width)
        assert amax(zeros) == 0
    assert entropy_bins(torch.tensor([5, 3, 1]), 8) == 3
