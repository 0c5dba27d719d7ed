"""Scores as text. Metrics of labels are times 100, shares of answers in percent, cosines and distances as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from q8trt.reporting.formats import number, x100
from q8trt.tasks.metrics import Scale, direction, scale_of

#: Main metric of a task without labels -> a clause on a row's figure, which compares with the FP32 model.
_DRIFT: Mapping[str, str] = {
    "agreement": "{} of its labels are those of FP32",
    "label_agreement": "{} of its decisions are those of FP32",
    "span_agreement": "{} of its answers are those of FP32",
    "correlation": "its scores have a correlation of {} with FP32's",
    "rank_spearman": "its order of the pairs has a rank correlation of {} with FP32's",
    "cosine_mean": "its embeddings have a mean cosine of {} to FP32's",
}
#: Main metric -> the metric beside it in the main table, with a clause that follows the first one.
_BESIDE: Mapping[str, tuple[str, str]] = {"cosine_mean": ("neighbors_10", " and keep {} of the 10 nearest neighbors")}


#: Metrics of detail tables -> their meaning, in groups that share a sentence.
_MEANINGS: Mapping[tuple[str, ...], str] = {
    ("corr",): "corr: mean of Pearson's and Spearman's correlation",
    ("logit_mean", "logit_p99", "logit_worst"): (
        "logit_mean, logit_p99, logit_worst: mean, 99th percentile and maximum over the rows of the largest difference of a "
        "logit to the FP32 model's"
    ),
    (
        "cosine_p1",
        "cosine_worst",
    ): "cosine_p1, cosine_worst: 1st percentile and minimum of the cosines to FP32's embeddings",
    ("neighbors_10",): "neighbors_10: share of the 10 nearest neighbors of a text that FP32's embeddings have, too",
}


def meanings(metrics: Iterable[str]) -> str:
    """Return the meanings of those of `metrics` whose names do not state it; "" if there are none."""
    names = {*metrics}
    return "; ".join(text for group, text in _MEANINGS.items() if names & {*group})


def is_drift(metric: str) -> bool:
    """Return whether the main metric `metric` compares with the FP32 model, because the rows have no labels."""
    return metric in _DRIFT


def score_text(metric: str, value: float) -> str:
    """Return ``"86.84"`` (x100), ``"97.7%"``, ``"0.9973"``, or a distance with four digits, ``"0.3288"``."""
    scale = scale_of(metric)
    if scale is Scale.X100:
        return x100(value)
    if scale is Scale.PERCENT:
        return f"{number(100 * value, '.1f')}%"
    return number(value, ".4g" if direction(metric) < 0 else ".4f")


def difference_text(metric: str, value: float) -> str:
    """Return ``"+0.35 points"`` for a metric that is shown times 100 or in percent, otherwise ``"-0.0012"``."""
    return number(value, "+.4f") if scale_of(metric) is Scale.PLAIN else f"{number(100 * value, '+.2f')} points"


def shown_difference(metric: str, score_x100: float, base_x100: float) -> float:
    """Return the difference (x100) of two scores, rounded as `score_text` shows them, so that a reader's sum is the same."""
    decimals = 1 if scale_of(metric) is Scale.PERCENT else 2
    return round(score_x100, decimals) - round(base_x100, decimals)


def on_axis(metric: str, value: float) -> float:
    """Return the figure that a plot draws, in the unit of `score_text`."""
    return value if scale_of(metric) is Scale.PLAIN else 100 * value


def axis_unit(metric: str) -> str:
    """Return ``"x100"``, ``"%"`` or ""."""
    return "%" if scale_of(metric) is Scale.PERCENT else unit_of(metric)


def unit_of(metric: str) -> str:
    """Return ``"x100"`` for a metric that is shown times 100; "" for any other."""
    return "x100" if scale_of(metric) is Scale.X100 else ""


def with_unit(metric: str) -> str:
    """Return ``"pearson x100"`` or ``"cosine_mean"``."""
    return f"{metric} {unit_of(metric)}".rstrip()


def beside(main_metric: str) -> str | None:
    """Return the metric that the main table shows beside `main_metric`; None if there is none."""
    return _BESIDE[main_metric][0] if main_metric in _BESIDE else None


def drift_clause(main_metric: str, metrics: Mapping[str, float]) -> str:
    """Return ``"its embeddings have a mean cosine of 0.9973 to FP32's and keep 97.7% of the 10 nearest neighbors"``."""
    clause = _DRIFT[main_metric].format(score_text(main_metric, metrics[main_metric]))
    other = beside(main_metric)
    if other is None or other not in metrics:
        return clause
    return clause + _BESIDE[main_metric][1].format(score_text(other, metrics[other]))
