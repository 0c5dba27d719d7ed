"""The shapes to time and for how long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from q8trt.console.options import Values, at_least, check_options, option
from q8trt.engine.shapes import Shape, show
from q8trt.errors import ConfigError


def parse_shapes_list(text: str) -> tuple[Shape, ...]:
    """Read shapes: ``"1x128,16x128"`` -> ``((1, 128), (16, 128))``, each (batch, sequence).

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


def parse_sizes(flag: str, text: str) -> tuple[int, ...]:
    """Read sizes: ``"1,8,16"`` -> ``(1, 8, 16)``; `flag` is the option that the error names.

    Raises:
        ConfigError: an item is not a positive whole number, or appears twice.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]*", item) for item in items) or len(set(items)) < len(items):
        raise ConfigError(f"{flag} {text!r}, expected different whole numbers of 1 or more, such as 1,8,16")
    return tuple(map(int, items))


def grid(batch_sizes: Sequence[int], seq_lengths: Sequence[int]) -> tuple[Shape, ...]:
    """Return every batch with every sequence, the sequence in the outer loop."""
    return tuple((batch, sequence) for sequence in seq_lengths for batch in batch_sizes)


@dataclass(frozen=True)
class TimingConfig:
    """The shapes to time and for how long.

    Raises:
        ConfigError: no shape, a shape twice, or a number out of range.
    """

    shapes: tuple[Shape, ...] = option(
        ((1, 128), (16, 128)),
        "batch x sequence shapes to time",
        metavar="BxS,...",
        read=parse_shapes_list,
        show=lambda shapes: ",".join(map(show, shapes)),
    )
    warmup: int = option(5, "iterations of each engine and shape before the timed ones", values=at_least(0))
    iterations: int = option(
        30,
        "timed iterations of each engine and shape; --duration adds more, and --max_seconds may end them earlier",
        values=at_least(1),
    )
    duration_s: float = option(
        0.0, "time each shape for at least this many seconds, all engines together", flag="duration", metavar="S"
    )
    max_seconds: float = option(
        60.0,
        "stop a shape after this many seconds, all engines and the warmup together",
        metavar="S",
        values=Values("a positive number of seconds", lambda value: value > 0),
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.shapes:
            raise ConfigError("--shapes is empty, expected e.g. 1x128,16x128")
        for batch, sequence in self.shapes:
            if batch < 1 or sequence < 1:
                raise ConfigError(f"--shapes {batch}x{sequence}, expected a batch and a sequence of 1 or more")
        if len(set(self.shapes)) < len(self.shapes):
            raise ConfigError(f"--shapes {','.join(map(show, self.shapes))} names a shape twice")
        if not 0 <= self.duration_s < self.max_seconds:
            raise ConfigError(
                f"--duration {self.duration_s}, expected from 0 to below --max_seconds {self.max_seconds}"
            )

    @property
    def rounds(self) -> int:
        """Rounds of one iteration per runner, over all shapes, as `measure` reports them to ``on_progress`` in total."""
        return len(self.shapes) * (self.warmup + self.iterations)
