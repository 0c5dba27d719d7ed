"""The difference between the plans of two builds of the same input.

Plans may differ only in names: the threads of TensorRT-RTX's compiler number its temporary tensors ("__mye25748") in varying
order, and the names are in the plan. So differences in text are counted separately, with an example.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 1 << 24
#: Differing bytes whose offsets differ by less than this belong to one region.
GAP = 64
_TEXT = bytes(range(32, 127)) + b"\t\n\r"


@dataclass(frozen=True)
class PlanDifference:
    """The difference between two plans, with offsets and sizes in bytes.

    Attributes:
        sizes: the sizes of the two plans.
        differing_bytes: number of bytes that differ, within the length of the shorter plan.
        regions: number of regions. The offsets of neighboring differing bytes of a region differ by less than GAP.
        text_regions: number of regions where both plans have ASCII text from the first to the last differing byte.
        first_offset: offset of the first differing byte; None if there is none.
        last_offset: offset of the last differing byte; None if there is none.
        example: the words at the first text region in the first and the second plan; None without such a region.
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
        """True if the plans are the same to the byte."""
        return not self.differing_bytes and self.sizes[0] == self.sizes[1]

    def __str__(self) -> str:
        if self.identical:
            return "identical"
        sizes = "" if self.sizes[0] == self.sizes[1] else f"{self.sizes[0]:,} and {self.sizes[1]:,} bytes; "
        if self.first_offset is None:
            return f"{sizes}the shorter plan is the beginning of the longer"
        share = 100 * self.differing_bytes / max(1, min(self.sizes))
        text = f"{sizes}{self.differing_bytes:,} bytes ({share:.2g}%) differ in {self.regions} regions"
        if self.example:
            how_many = "all" if self.text_regions == self.regions else str(self.text_regions)
            text += f", {how_many} of them text such as {self.example[0]} and {self.example[1]}"
        return text


def compare_plans(first: str | Path, second: str | Path) -> PlanDifference:
    """Compare two files byte by byte. They are memory-mapped. Raises OSError if one cannot be read."""
    import numpy as np

    paths = Path(first), Path(second)
    sizes = paths[0].stat().st_size, paths[1].stat().st_size
    length = min(sizes)
    if not length:
        return PlanDifference(sizes)
    left, right = (np.memmap(path, np.uint8, "r", shape=(length,)) for path in paths)
    count = 0
    regions: list[tuple[int, int]] = []  # first and last differing byte
    for start in range(0, length, _CHUNK):
        piece = slice(start, start + _CHUNK)
        offsets = start + np.flatnonzero(left[piece] != right[piece])
        count += len(offsets)
        breaks = np.flatnonzero(np.diff(offsets) >= GAP) + 1
        parts = [(int(part[0]), int(part[-1])) for part in np.split(offsets, breaks) if len(part)]
        if regions and parts and parts[0][0] - regions[-1][1] < GAP:  # the last region continues in this piece
            parts[0] = regions.pop()[0], parts[0][1]
        regions += parts
    if not regions:
        return PlanDifference(sizes)
    texts = [a for a, b in regions if _is_text(left[a : b + 1]) and _is_text(right[a : b + 1])]
    example = (_word(left, texts[0]), _word(right, texts[0])) if texts else None
    return PlanDifference(sizes, count, len(regions), len(texts), regions[0][0], regions[-1][1], example)


def _is_text(data: np.ndarray) -> bool:
    """Return whether all bytes are printable ASCII or white space."""
    return not data.tobytes().translate(None, _TEXT)


def _word(plan: np.ndarray, offset: int) -> str:
    """Return the word that contains the byte at `offset`, or else the next word within 64 bytes; "" if there is none."""
    start = max(0, offset - 64)
    text = plan[start : start + 128].tobytes().decode("ascii", errors="replace")
    words = (match for match in re.finditer(r"[\w./+-]+", text, re.ASCII) if match.end() > offset - start)
    return next((match[0] for match in words), "")
