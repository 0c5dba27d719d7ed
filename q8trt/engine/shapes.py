"""The (batch, sequence) shapes that an engine accepts and is tuned for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Meta

from q8trt.console.options import option
from q8trt.errors import ConfigError

#: A dimension of a shape. The bound keeps a damaged manifest from using gigabytes.
Dimension = Annotated[int, Meta(le=2**20)]
Shape = tuple[Dimension, Dimension]
_EXAMPLE = 'write "16x128" or "input_ids:16x128,attention_mask:16x128" (batch x sequence)'


@dataclass(frozen=True)
class ShapeProfile:
    """An optimization profile. Any shape from `min` to `max` runs, and TensorRT tunes for `opt`.

    Each is (batch in sequences, sequence length in tokens). See "Working with Dynamic Shapes" in TensorRT's
    documentation.

    Raises:
        ConfigError: a size is below 1, or the sizes of a dimension are not in the order min <= opt <= max.
    """

    min: Shape = (1, 1)
    opt: Shape = (16, 128)
    max: Shape = (32, 128)

    def __post_init__(self) -> None:
        for name in ("min", "opt", "max"):
            shape = getattr(self, name)
            if len(shape) != 2 or any(size < 1 for size in shape):
                raise ConfigError(f"shapes: {name} must be a positive batch and sequence; got {show(shape)}")
        for axis, dimension in enumerate(("batch", "sequence")):
            low, best, high = self.min[axis], self.opt[axis], self.max[axis]
            if not low <= best <= high:
                raise ConfigError(f"shapes: {dimension} must be min <= opt <= max; got {low}, {best}, {high}")

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Return whether a (batch, sequence) shape is between `min` and `max`."""
        return len(shape) == 2 and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        return f"{show(self.min)} to {show(self.max)}, best at {show(self.opt)}"


def show(shape: tuple[int, ...]) -> str:
    """Return a shape as text: ``(16, 128)`` -> ``"16x128"``."""
    return "x".join(str(size) for size in shape)


def parse_shapes(text: str) -> Shape:
    """Read a (batch, sequence) shape in trtexec's notation: "16x128", or "input_ids:16x128,attention_mask:16x128".

    Raises:
        ConfigError: the text is not in this notation, a size is below 1, or the inputs have different shapes.
    """
    shapes: list[Shape] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:[^\s:,]+:)?\s*(\d+)\s*[xX]\s*(\d+)", part.strip())
        if not match:
            raise ConfigError(f"cannot read the shape {text!r}: {_EXAMPLE}")
        shapes.append((int(match[1]), int(match[2])))
    if len(set(shapes)) != 1:
        raise ConfigError(f"all inputs must share one shape; {text!r} has {' and '.join(map(show, shapes))}")
    if min(shapes[0]) < 1:
        raise ConfigError(f"batch and sequence must be at least 1; got {text!r}")
    return shapes[0]


def parse_buckets(text: str) -> tuple[int, ...]:
    """Read sequence lengths such as "32,64,128". `bucket_profiles` checks their order.

    Raises:
        ConfigError: an entry is not a positive whole number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d*", part) for part in parts):
        raise ConfigError(f"cannot read the buckets {text!r}: write sequence lengths in tokens, as 32,64,128")
    return tuple(int(part) for part in parts)


def _profile_option(word: str) -> Any:
    text = f"{word} shape of a single profile, such as 16x128 or input_ids:16x128; not with --buckets, --opt_batch or --max_batch"
    return option(None, text, metavar="BxS", read=parse_shapes, show=show)


def bucket_profiles(buckets: Sequence[int], opt_batch: int, max_batch: int) -> tuple[ShapeProfile, ...]:
    """Return one profile for each bucket (its longest sequence, tokens), tuned for `opt_batch` sequences of that length.

    A profile begins after the end of the previous one, so each shape has exactly one profile: the one with the shortest bucket
    that fits. TensorRT tunes a profile only for its `opt` (TensorRT documentation, "Optimization Profiles").

    Raises:
        ConfigError: there is no bucket, the buckets do not ascend, or the batches are not 1 <= opt <= max.
    """
    if not buckets or any(low >= high for low, high in pairwise(buckets)):
        raise ConfigError(f"buckets must ascend, each longer than the one before; got {','.join(map(str, buckets))}")
    starts = (1, *(bucket + 1 for bucket in buckets[:-1]))
    return tuple(
        ShapeProfile((1, start), (opt_batch, bucket), (max_batch, bucket))
        for start, bucket in zip(starts, buckets, strict=True)
    )


def _largest(*shapes: Shape) -> Shape:
    return max(batch for batch, _ in shapes), max(sequence for _, sequence in shapes)


def _smallest(*shapes: Shape) -> Shape:
    return min(batch for batch, _ in shapes), min(sequence for _, sequence in shapes)


@dataclass(frozen=True)
class ShapeOptions:
    """Options that choose the optimization profiles of a plan.

    Raises:
        ConfigError: shapes of a single profile together with buckets or batches.
    """

    buckets: tuple[int, ...] = option(
        (),
        "one optimization profile for each of these sequence lengths, such as 32,64,128",
        metavar="N,N,...",
        read=parse_buckets,
        show=lambda buckets: ",".join(map(str, buckets)),
        unset="one, up to the sequence length of the model's training or calibration",
    )
    opt_batch: int | None = option(
        None, "batch that the profiles are tuned for", unset="16, or --max_batch if that is smaller"
    )
    max_batch: int | None = option(None, "largest batch of the profiles", unset="32, or --opt_batch if that is larger")
    min_shapes: Shape | None = _profile_option("smallest")
    opt_shapes: Shape | None = _profile_option("tuned")
    max_shapes: Shape | None = _profile_option("largest")

    def __post_init__(self) -> None:
        if self._shapes and (others := [name for name in ("buckets", "opt_batch", "max_batch") if getattr(self, name)]):
            raise ConfigError(
                f"--{others[0]} excludes --{next(iter(self._shapes))}_shapes: give buckets and batches, or the shapes of one "
                "profile"
            )

    @property
    def _shapes(self) -> dict[str, Shape]:
        shapes = {"min": self.min_shapes, "opt": self.opt_shapes, "max": self.max_shapes}
        return {name: shape for name, shape in shapes.items() if shape}

    def profiles(self, length: int) -> tuple[ShapeProfile, ...]:
        """Return the profiles. Without buckets there is one, of up to `length` tokens.

        A default shape is reduced or enlarged to fit the shapes that are set.

        Raises:
            ConfigError: the buckets do not ascend, or the batches or shapes that are set are not min <= opt <= max.
        """
        most = max(32, self.opt_batch or 1) if self.max_batch is None else self.max_batch
        best = min(16, most) if self.opt_batch is None else self.opt_batch
        profiles = bucket_profiles(self.buckets or (length,), best, most)
        return (self._single(profiles[0]),) if self._shapes else profiles

    def _single(self, default: ShapeProfile) -> ShapeProfile:
        low = self.min_shapes or default.min
        high = self.max_shapes or _largest(default.max, self.opt_shapes or low, low)
        return ShapeProfile(low, self.opt_shapes or _smallest(_largest(default.opt, low), high), high)


def largest(profiles: Iterable[ShapeProfile]) -> Shape:
    """Return the largest batch and the longest sequence of `profiles`, which may be from different profiles."""
    return _largest(*(profile.max for profile in profiles))


def covering(profiles: Sequence[ShapeProfile], shape: tuple[int, ...]) -> int | None:
    """Return the index of the profile that accepts a (batch, sequence) shape; None if there is none.

    If there are several, it is the one with the shortest maximum sequence, then the smallest maximum batch.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.covers(shape)]
    return min(fitting, key=lambda index: profiles[index].max[::-1], default=None)


def show_profiles(profiles: Sequence[ShapeProfile]) -> str:
    """Return the profiles as text: ``"1x1 to 32x32, best at 16x32; 1x33 to 32x64, best at 16x64"``."""
    return "; ".join(map(str, profiles))


def check_positions(profiles: Iterable[ShapeProfile], max_positions: int) -> None:
    """Refuse profiles with sequences that are longer than `max_positions`, the rows of the model's position table.

    Raises:
        ConfigError: the `max` of a profile has a longer sequence. Its last tokens would read outside the table.
    """
    for profile in profiles:
        if profile.max[1] > max_positions:
            raise ConfigError(
                f"shapes: max has sequence {profile.max[1]}, but the model has {max_positions} positions; "
                f"use a max sequence of {max_positions} or less"
            )
