from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from q8trt.engine import determinism
from q8trt.engine.determinism import GAP, compare_plans


def compared(folder: Path, first: bytes, second: bytes) -> determinism.PlanDifference:
    (folder / "a").write_bytes(first)
    (folder / "b").write_bytes(second)
    return compare_plans(folder / "a", folder / "b")


def changed(data: bytes, *positions: int) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    array[list(positions)] ^= 1
    return array.tobytes()


DATA = np.random.default_rng(0).bytes(5000)


def test_the_same_bytes_are_identical(tmp_path: Path) -> None:
    difference = compared(tmp_path, DATA, DATA)
    assert difference.identical
    assert str(difference) == "identical"
    assert compared(tmp_path, b"", b"").identical


@pytest.mark.parametrize("chunk", [1 << 24, 1000, 7])
def test_regions_do_not_depend_on_the_pieces_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(determinism, "_CHUNK", chunk)
    positions = (10, 11, 10 + GAP, 11 + 2 * GAP, 995, 1005, 4999)
    difference = compared(tmp_path, DATA, changed(DATA, *positions))
    assert not difference.identical
    assert difference.differing_bytes == len(positions)
    assert difference.regions == 4, "10, 11 and 10+GAP are one region; 11+2*GAP is one too far; 995 and 1005 are one"
    assert (difference.first_offset, difference.last_offset) == (10, 4999)
    assert str(difference).startswith("7 bytes (0.14%) differ in 4 regions")


@pytest.mark.parametrize("chunk", [1 << 24, 1039])
def test_names_are_told_from_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Also where a name lies across two pieces."""
    monkeypatch.setattr(determinism, "_CHUNK", chunk)
    names = [bytes(1024) + b'name="__mye' + number + b'", type=float' + bytes(999) for number in (b"25748", b"25760")]
    difference = compared(tmp_path, *names)
    assert (difference.regions, difference.text_regions) == (1, 1)
    assert difference.example == ("__mye25748", "__mye25760")
    assert str(difference).endswith("differ in 1 regions, all of them text such as __mye25748 and __mye25760")
    weights = compared(tmp_path, names[0], names[1][:-1] + b"\xff")
    assert (weights.regions, weights.text_regions) == (2, 1)
    assert "differ in 2 regions, 1 of them text such as" in str(weights)
    for part in (b"6\xff", b"\xff0"):
        partly = compared(tmp_path, names[0], names[1].replace(b"60", part))
        assert (partly.regions, partly.text_regions) == (1, 0), "one of its bytes is no text"
    assert compared(tmp_path, b"\0\1" + DATA, b"\0\2" + DATA).example is None


def test_sizes_are_named(tmp_path: Path) -> None:
    longer = compared(tmp_path, DATA, DATA + b"x")
    assert not longer.identical
    assert str(longer) == "5,000 and 5,001 bytes; the shorter plan is the beginning of the longer"
    both = compared(tmp_path, DATA, changed(DATA, 1) + b"x")
    assert str(both).startswith("5,000 and 5,001 bytes; 1 bytes (0.02%) differ in 1 regions")
