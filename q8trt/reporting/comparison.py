"""Two benchmark reports side by side: two machines, two backends or two versions.

A ratio between different machines or backends compares more than the two engines, so each pair of rows lists what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from q8trt.reporting.stored import StoredReport, StoredRow


@dataclass(frozen=True)
class Difference:
    """A difference between two rows other than their figures: the `name` of what differs, and its value in A and in B."""

    name: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.name}: {self.a} | {self.b}"


@dataclass(frozen=True)
class TimePair:
    """The median time of two matched rows at one shape.

    Attributes:
        b_median_ms: None if B did not time the shape.
        across: what differs besides the figures; if it is not empty, the ratio compares that and not the models.
    """

    name: str
    precision: str
    shape: str
    a_place: str
    b_place: str
    a_median_ms: float
    b_median_ms: float | None
    across: tuple[Difference, ...]

    @property
    def speed(self) -> float | None:
        """A's median over B's: above 1, B is faster."""
        return None if self.b_median_ms is None else self.a_median_ms / self.b_median_ms


@dataclass(frozen=True)
class ScorePair:
    """The scores of two matched rows, times 100; `across` is not empty if they were scored on different data."""

    name: str
    metric: str
    a_score_x100: float | None
    b_score_x100: float | None
    across: tuple[Difference, ...]

    @property
    def points(self) -> float | None:
        """B's score minus A's, times 100; None on different data, or without a score."""
        if self.across or self.a_score_x100 is None or self.b_score_x100 is None:
            return None
        return self.b_score_x100 - self.a_score_x100


@dataclass(frozen=True)
class SideBySide:
    """Two reports with their rows matched by name and precision, and their times by shape.

    Attributes:
        a: the first report, and `b` the second.
        times: one for each matched row and shape of A.
        scores: one for each matched row.
        only_in_a: names of the rows of A without a partner; `only_in_b` is the same for B.
    """

    a: StoredReport
    b: StoredReport
    times: tuple[TimePair, ...]
    scores: tuple[ScorePair, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``compare.json`` (docs/reference/benchmark-schema.md)."""
        return {
            "a": _about(self.a),
            "b": _about(self.b),
            "rows": [
                {**asdict(each), "b_over_a_speed_ratio": each.speed, "across": list(map(str, each.across))}
                for each in self.times
            ],
            "scores": [
                {**asdict(each), "b_minus_a_points": each.points, "across": list(map(str, each.across))}
                for each in self.scores
            ],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }


def _about(report: StoredReport) -> dict[str, Any]:
    return {"title": report.title, "head": asdict(report.head), **asdict(report.provenance)}


def side_by_side(a: StoredReport, b: StoredReport) -> SideBySide:
    """Match the rows of two reports."""
    pairs = _pairs(a.rows, b.rows)
    matched = [id(row) for pair in pairs for row in pair]
    return SideBySide(
        a,
        b,
        tuple(time for first, second in pairs for time in _times(a, b, first, second)),
        tuple(_score(a, b, first, second) for first, second in pairs),
        tuple(row.name for row in a.rows if id(row) not in matched),
        tuple(row.name for row in b.rows if id(row) not in matched),
    )


def _pairs(a: Sequence[StoredRow], b: Sequence[StoredRow]) -> list[tuple[StoredRow, StoredRow]]:
    """Return pairs of rows of one name and precision, in the order of `a`; equal backends and devices are matched first."""
    partners: dict[int, int] = {}
    for keys in (("name", "precision", "backend", "device"), ("name", "precision")):
        for index, row in enumerate(a):
            free = (other for other in range(len(b)) if other not in partners.values())
            alike = (other for other in free if all(getattr(row, key) == getattr(b[other], key) for key in keys))
            if index not in partners and (partner := next(alike, None)) is not None:
                partners[index] = partner
    return [(a[index], b[partners[index]]) for index in sorted(partners)]


def _differing(name: str, a: str, b: str) -> tuple[Difference, ...]:
    return (Difference(name, a, b),) if a != b else ()


def _times(a: StoredReport, b: StoredReport, first: StoredRow, second: StoredRow) -> list[TimePair]:
    """Return a pair for each shape of `first`. A different version is not listed, because users compare versions this way."""
    across = _differing("backend", first.backend, second.backend)
    across += _differing("device", a.machine(first), b.machine(second))
    others = {latency.shape: latency for latency in second.latencies}
    pairs = []
    for latency in first.latencies:
        other = others.get(latency.shape)
        clocks = _differing("clock", latency.clock, other.clock) if other else ()
        pairs.append(
            TimePair(
                first.name, first.precision, latency.shape, first.place, second.place, latency.median_ms,
                other.median_ms if other else None, across + clocks,
            )
        )  # fmt: skip
    return pairs


def _score(a: StoredReport, b: StoredReport, first: StoredRow, second: StoredRow) -> ScorePair:
    across = () if a.data == b.data else (Difference("data", a.title, b.title),)
    return ScorePair(first.name, a.main_metric, first.score_x100, second.score_x100, across)
