"""Windows over long texts: the ids and characters of transformers' own, and the edges that transformers refuses."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from tokenizer_fixtures import CORPUS, PIECES, byte_level, unigram, wordpiece

from q8trt.tasks.data.encoding import RoomError
from q8trt.tasks.data.windows import WindowEncoder, WindowSizes

KINDS = {"wordpiece": wordpiece, "byte_level": byte_level, "unigram": unigram}


def texts(count: int) -> list[str]:
    generator = random.Random(5)
    return [" ".join(generator.choices([*CORPUS, *PIECES], k=generator.randrange(1, 40))) for _ in range(count)]


def transformers_windows(tokenizer: Any, rows: list[tuple[str, ...]], sizes: WindowSizes) -> Any:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    return fast(
        *map(list, zip(*rows, strict=True)),
        truncation="only_second" if len(rows[0]) == 2 else True,
        max_length=sizes.max_length,
        stride=sizes.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_pair", [False, True])
def test_windows_are_those_of_transformers(kind: str, is_pair: bool) -> None:
    sizes = WindowSizes(max_length=48, stride=7, question=20)
    contexts = texts(25)
    rows = [("the fox?", context) if is_pair else (context,) for context in contexts]
    encoder = WindowEncoder(KINDS[kind](), sizes, is_pair)
    windows = encoder.encode(rows)
    expected = transformers_windows(KINDS[kind](), rows, sizes)
    assert windows.input_ids == expected["input_ids"]
    if kind != "unigram":  # whose models read no types; tokenizers gives overflows others than the first window
        assert windows.token_type_ids == expected["token_type_ids"]
    assert windows.rows.tolist() == expected["overflow_to_sample_mapping"]
    for index, (place, characters) in enumerate(zip(windows.places, windows.offsets, strict=True)):
        assert characters.tolist() == [
            list(pair) for pair in expected["offset_mapping"][index][place : place + len(characters)]
        ]
        last = expected.sequence_ids(index)
        assert {*last[place : place + len(characters)]} <= {int(is_pair)}
        assert last.count(int(is_pair)) == len(characters)
    assert len(windows) > len(rows)


def test_windows_cover_each_token_and_share_the_stride() -> None:
    context = "the fox " * 100
    windows = WindowEncoder(wordpiece(), WindowSizes(20, 5, 8), True).encode([("fox", context), ("the", "fox")])
    first = windows.first[windows.rows == 0].tolist()
    counts = [len(each) for each in windows.offsets][:-1]
    assert first[0] == 0
    assert all(b == a + count - 5 for a, b, count in zip(first, first[1:], counts, strict=False))
    assert first[-1] + counts[-1] == 200
    assert [context[start:end] for start, end in windows.offsets[1]][:2] == ["fox", "the"]


def test_a_long_question_is_cut_and_windows_always_move_on() -> None:
    sizes = WindowSizes(max_length=16, stride=128, question=64)  # as for a model of few positions
    windows = WindowEncoder(wordpiece(), sizes, True).encode([("the " * 50, "fox " * 30)])
    assert max(windows.lengths) == 16
    assert windows.truncated == 1
    assert {int(place) for place in windows.places} == {1 + 6 + 1}  # half of the 13 tokens that are not special
    assert windows.first.tolist() == list(range(0, 27, 4))[: len(windows)]
    assert windows.first[-1] + len(windows.offsets[-1]) == 30


def test_equal_texts_are_encoded_once_and_a_text_without_tokens_has_a_window() -> None:
    calls: list[int] = []

    class Counting:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tokenizer, name)

        def encode_batch(self, batch: list[str], **options: Any) -> Any:
            calls.append(len(batch))
            return self._tokenizer.encode_batch(batch, **options)

    encoder = WindowEncoder(Counting(wordpiece()), WindowSizes(24, 4, 8), True)
    windows = encoder.encode([("a", "fox the"), ("the", "fox the"), ("fox", "\u200b")])
    assert calls == [2]
    assert windows.rows.tolist() == [0, 1, 2]
    assert [each.shape for each in windows.offsets] == [(2, 2), (2, 2), (0, 2)]
    assert all(each.dtype == np.int32 for each in windows.offsets)
    assert len(encoder.encode([])) == 0


def test_no_room_for_text_is_an_error() -> None:
    with pytest.raises(RoomError, match="5 or more"):
        WindowEncoder(wordpiece(), WindowSizes(4, 1, 8), True)
