"""Whether the same input built twice gave the same plan, and where two plans part.

Two plans may part in nothing but names: TensorRT-RTX's compiler numbers its temporary tensors ("__mye25748") as its threads
come to them, and writes the names into the plan. So regions of text are told from the rest, with an example.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

_CHUNK = 1 << 24
#: Differing bytes closer to each other than this are of one region.
GAP = 64
#: For each byte, whether it is printable ASCII or white space.
_TEXT = np.array([32 <= byte < 127 or byte in b"\t\n\r" for byte in range(256)])


@dataclass(frozen=True)
class PlanDifference:
    """How two plans differ; offsets and sizes in bytes.

    Attributes:
        sizes: of the two plans.
        differing_bytes: positions, of the shorter plan's, that hold another value.
        regions: runs of differing bytes, with less than GAP equal bytes between two of a run.
        text_regions: those of them where both plans hold ASCII text from the first to the last differing byte.
        first_offset: of the first differing byte; None where the shorter plan is the longer one's beginning.
        last_offset: of the last one.
        example: the words at the first text region, of the one plan and of the other; None without one.
    """

    sizes: tuple[int, int]
    differing_bytes: int = 0
    regions: int = 0
    text_regions: int = 0
    first_offset: int | None = None
    last_offset: int | None = None
    example: tuple[str, str] | None = None

    @property
    def identical(self) -> bool:
        """Whether the plans are the same to the byte."""
        return not self.differing_bytes and self.sizes[0] == self.sizes[1]

    def __str__(self) -> str:
        if self.identical:
            return "identical"
        sizes = "" if self.sizes[0] == self.sizes[1] else f"{self.sizes[0]:,} and {self.sizes[1]:,} bytes; "
        if self.first_offset is None:
            return f"{sizes}the shorter is the beginning of the longer"
        share = 100 * self.differing_bytes / max(1, min(self.sizes))
        text = f"{sizes}{self.differing_bytes:,} bytes ({share:.2g}%) differ in {self.regions} regions"
        if self.example:
            how_many = "all" if self.text_regions == self.regions else str(self.text_regions)
            text += f", {how_many} of them text such as {self.example[0]} and {self.example[1]}"
        return text


@dataclass
class _Region:
    first: int
    last: int
    count: int
    is_text: bool


def compare_plans(first: str | Path, second: str | Path) -> PlanDifference:
    """Compare two files byte by byte, in pieces: plans are as large as models.

    Raises:
        OSError: a file cannot be read.
    """
    paths = Path(first), Path(second)
    sizes = paths[0].stat().st_size, paths[1].stat().st_size
    count, regions, text_regions = 0, 0, 0
    start: int | None = None
    example: int | None = None
    open_region: _Region | None = None
    with paths[0].open("rb") as one, paths[1].open("rb") as two:
        for offset in range(0, min(sizes), _CHUNK):
            length = min(_CHUNK, min(sizes) - offset)
            left, right = (np.frombuffer(file.read(length), np.uint8) for file in (one, two))
            for region in _regions(left, right, offset):
                count += region.count
                if open_region and region.first - open_region.last < GAP:  # it lies across two pieces
                    text_regions -= open_region.is_text
                    region.is_text &= open_region.is_text
                else:
                    regions += 1
                text_regions += region.is_text
                start = region.first if start is None else start
                example = region.first if region.is_text and example is None else example
                open_region = region
        words = None if example is None else (_word(one, example), _word(two, example))
    last = open_region.last if open_region else None
    return PlanDifference(sizes, count, regions, text_regions, start, last, words)


def _regions(left: np.ndarray, right: np.ndarray, offset: int) -> list[_Region]:
    """The regions of one piece, which begins at `offset`."""
    found = np.flatnonzero(left != right)
    if not len(found):
        return []
    breaks = np.flatnonzero(np.diff(found) >= GAP) + 1
    made = []
    for a, b in pairwise([0, *breaks.tolist(), len(found)]):
        begin, end = int(found[a]), int(found[b - 1])
        is_text = bool(_TEXT[left[begin : end + 1]].all() and _TEXT[right[begin : end + 1]].all())
        made.append(_Region(begin + offset, end + offset, b - a, is_text))
    return made


def _word(file: BinaryIO, offset: int) -> str:
    """The name that the byte at `offset` belongs to."""
    start = max(0, offset - 64)
    file.seek(start)
    text = file.read(128).decode("ascii", errors="replace")
    words = (match for match in re.finditer(r"[\w./+-]+", text, re.ASCII) if match.end() > offset - start)
    return next((match[0] for match in words), "")
