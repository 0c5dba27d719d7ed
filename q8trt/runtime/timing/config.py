"""What to time and for how long: plain data, checked when it is made."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from q8trt.errors import ConfigError

Shape = tuple[int, int]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to time and for how long.

    Raises:
        ConfigError: no shape, a shape twice, or a number out of range.
    """

    shapes: tuple[Shape, ...] = field(
        default=((1, 128), (16, 128)), metadata={"help": "batch x sequence shapes to time, e.g. 1x128,16x128"}
    )
    warmup: int = field(default=5, metadata={"help": "untimed iterations per runner and shape before the timed ones"})
    iterations: int = field(default=30, metadata={"help": "timed iterations per runner and shape, at least"})
    duration_s: float = field(
        default=0.0, metadata={"help": "and at least so many seconds of timed iterations a shape, all runners together"}
    )
    max_seconds: float = field(
        default=60.0, metadata={"help": "stop a shape after this many seconds, all runners and the warm-up together"}
    )

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ConfigError("--shapes is empty, expected e.g. 1x128,16x128")
        for batch, sequence in self.shapes:
            if batch < 1 or sequence < 1:
                raise ConfigError(f"--shapes {batch}x{sequence}, expected a batch and a sequence of 1 or more")
        if len(set(self.shapes)) < len(self.shapes):
            raise ConfigError(f"--shapes {','.join(f'{b}x{s}' for b, s in self.shapes)} names a shape twice")
        if self.warmup < 0:
            raise ConfigError(f"--warmup {self.warmup}, expected 0 or more")
        if self.iterations < 1:
            raise ConfigError(f"--iterations {self.iterations}, expected 1 or more")
        if not (math.isfinite(self.max_seconds) and self.max_seconds > 0):
            raise ConfigError(f"--max_seconds {self.max_seconds}, expected a positive number of seconds")
        if not 0 <= self.duration_s < self.max_seconds:
            raise ConfigError(
                f"--duration {self.duration_s}, expected from 0 to below --max_seconds {self.max_seconds}"
            )

    @property
    def rounds(self) -> int:
        """Rounds of one iteration per runner, over all shapes: what `measure` reports to ``on_progress`` in total."""
        return len(self.shapes) * (self.warmup + self.iterations)


def parse_shapes_list(text: str) -> tuple[Shape, ...]:
    """``"1x128,16x128"`` -> ``((1, 128), (16, 128))``, each (batch, sequence).

    Raises:
        ConfigError: an item is not BATCHxSEQUENCE.
    """
    shapes = []
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]+)x([0-9]+)", item.strip().lower())
        if not match:
            raise ConfigError(f"--shapes has {item.strip()!r}, expected BATCHxSEQUENCE items such as 1x128,16x128")
        shapes.append((int(match[1]), int(match[2])))
    return tuple(shapes)


def parse_sizes(option: str, text: str) -> tuple[int, ...]:
    """``"1,8,16"`` -> ``(1, 8, 16)``; `option` is what the error names.

    Raises:
        ConfigError: an item is no positive whole number, or is there twice.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]*", item) for item in items) or len(set(items)) < len(items):
        raise ConfigError(f"{option} {text!r}, expected different whole numbers of 1 or more, such as 1,8,16")
    return tuple(map(int, items))


def grid(batch_sizes: Sequence[int], seq_lengths: Sequence[int]) -> tuple[Shape, ...]:
    """Every batch with every sequence, the sequence in the outer loop."""
    return tuple((batch, sequence) for sequence in seq_lengths for batch in batch_sizes)
