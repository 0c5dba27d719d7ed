"""Texts cut before they are encoded: the tokens are those of `tokenizers`' own truncation."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizer_fixtures import KINDS, byte_level, random_text, unigram, wordpiece

from q8trt.tasks.data import counted, encoding
from q8trt.tasks.data.encoding import Encoder, EncodingError, splits_at_spaces

SIDES = ("right", "left")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizers(kind: str) -> tuple[Any, Any]:
    """A tokenizer for `Encoder`, and the same for the reference."""
    return KINDS[kind](), KINDS[kind]()


def expected(tokenizer: Any, texts: tuple[str, ...], length: int, side: str) -> tuple[list[int], list[int]]:
    """Return ids and token types by the truncation of `tokenizers`."""
    tokenizer.enable_truncation(length, strategy="longest_first", direction=side)
    whole = tokenizer.encode(*texts)
    return whole.ids, whole.type_ids


@pytest.mark.parametrize("side", SIDES)
def test_random_texts_have_the_tokens_of_tokenizers(
    tokenizers: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, side: str, kind: str
) -> None:
    """Cut at safe places alone, at almost every chance: two characters a token are encoded first."""
    monkeypatch.setattr(encoding, "PER_TOKEN", 2)
    chance, cut = random.Random(f"{side} {kind}"), 0
    tokenizer, reference = tokenizers
    encoders = [Encoder(tokenizer, length, pair, side) for length in (6, 9, 14) for pair in (False, True)]
    for _ in range(120):
        encoder = chance.choice(encoders)
        length, is_pair = encoder.max_length, encoder.is_pair
        texts = tuple(random_text(chance, chance.randint(0, 60)) for _ in range(1 + is_pair))
        whole = [reference.encode(text, add_special_tokens=False).ids for text in texts]
        encoded = encoder.encode([texts])
        assert (encoded.ids[0], encoded.type_ids[0]) == expected(reference, texts, length, side), repr(texts)
        reference.no_truncation()
        assert encoded.truncated == (sum(map(len, whole)) > encoder._budget)
        for text, ids in zip(texts, whole, strict=True):
            part = encoder._ids([encoder._part(text, 2 * encoder._budget)])[0]
            kept_end = ids[len(ids) - len(part) :] if side == "left" else ids[: len(part)]
            assert part == kept_end, repr(text)
        cut += any(len(encoder._part(text, 2 * encoder._budget)) < len(text) for text in texts)
    assert (cut > 15) == splits_at_spaces(tokenizer, side == "left"), cut  # else nothing was tried


@pytest.mark.parametrize("side", SIDES)
def test_all_short_pairs_are_cut_longest_first(side: str) -> None:
    tokenizer, reference = wordpiece(), wordpiece()
    for length in range(5, 13):
        encoder = Encoder(tokenizer, length, True, side)
        rows = [("a" + " b" * (first - 1) if first else "", "x" + " y" * (second - 1) if second else "")
                for first in range(16) for second in range(16)]  # fmt: skip
        found = encoder.encode(rows)
        for row, ids, types in zip(rows, found.ids, found.type_ids, strict=True):
            assert (ids, types) == expected(reference, row, length, side), (row, length)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make", [wordpiece, byte_level, unigram])
def test_pairs_longer_than_what_is_encoded_first(make: Any, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer text gets the middle token: both are counted whole up to a limit, then characters decide."""
    monkeypatch.setattr(encoding, "PER_TOKEN", 2)
    tokenizer, reference = make(), make()
    for length in (11, 12):
        encoder = Encoder(tokenizer, length, True, side)
        for first, second in ((60, 90), (90, 60), (60, 60)):
            texts = ("the fox " * first, "a fox " * second)
            assert encoder.encode([texts]).ids[0] == expected(reference, texts, length, side)[0]
    monkeypatch.setattr(encoding, "COUNTED", 10)
    for texts in (("the fox " * 90, "a fox " * 60), ("a fox " * 60, "the fox " * 90)):
        assert encoder.encode([texts]).ids[0] == expected(reference, texts, length, side)[0]


@pytest.mark.parametrize("text", ["!" * 900, "中" * 900, " " * 900 + "fox", "x" * 900, "e\u0301" * 900])
@pytest.mark.parametrize("side", SIDES)
def test_texts_without_a_safe_place_are_cut_bluntly(text: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PER_TOKEN", 2), ("BLUNT", 100), ("MOST", 1000)):
        monkeypatch.setattr(encoding, name, value)
    tokenizer, reference = wordpiece(), wordpiece()
    encoded = Encoder(tokenizer, 12, False, side).encode([(text,)])
    assert encoded.ids[0] == expected(reference, (text,), 12, side)[0]


def test_no_more_than_a_limit_is_read_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PER_TOKEN", 2), ("BLUNT", 100), ("MOST", 200)):
        monkeypatch.setattr(encoding, name, value)
    encoder = Encoder(wordpiece(), 12, False)
    assert encoder.encode([(" " * 300 + "fox",)]) == encoding.Encoded([[2, 3]], [[0, 0]], 1)


def test_many_rows_are_encoded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("the fox " * number,) for number in range(1, 40)]
    whole = Encoder(wordpiece(), 12, False).encode(rows)
    monkeypatch.setattr(encoding, "_GROUP", 100)
    assert Encoder(wordpiece(), 12, False).encode(rows) == whole
    assert whole.truncated == 34
    assert Encoder(wordpiece(), 12, False).encode([]) == encoding.Encoded([], [], 0)


def test_the_memory_of_a_long_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(wordpiece(), 128, False)
    sizes: list[int] = []
    ids = encoder._ids
    monkeypatch.setattr(encoder, "_ids", lambda texts: sizes.append(sum(map(len, texts))) or ids(texts))
    encoder.encode([("!" * 2_000_000,)])
    encoder.encode([("the fox " * 250_000,)])
    assert max(sizes[:-1]) <= encoding.BLUNT
    assert sizes[-1] <= 16 * 128


def test_which_tokenizers_split_at_spaces() -> None:
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

    assert {name: splits_at_spaces(make()) for name, make in KINDS.items()} == {name: name != "whole" for name in KINDS}
    for change in (
        {"pre_tokenizer": pre_tokenizers.Split(Regex("(?<=a b)c"), "isolated")},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Punctuation()},
        {"normalizer": normalizers.Replace(" ", "▁")},
        {"normalizer": normalizers.Replace(Regex("a b"), "c")},
    ):
        tokenizer = wordpiece()
        for name, value in change.items():
            setattr(tokenizer, name, value)
        assert not splits_at_spaces(tokenizer), change
    tokenizer = wordpiece()
    tokenizer.add_tokens([AddedToken("the fox")])
    assert not splits_at_spaces(tokenizer)
    tokenizer = wordpiece()
    tokenizer.normalizer = normalizers.Strip()
    assert splits_at_spaces(tokenizer)
    assert not splits_at_spaces(tokenizer, left=True)


def test_what_an_encoder_refuses() -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    with pytest.raises(EncodingError, match="4 tokens leave no room for text: 5 or more are needed"):
        Encoder(wordpiece(), 4, True)
    with pytest.raises(EncodingError, match="truncation_side is 'up', expected 'right' or 'left'"):
        Encoder(wordpiece(), 12, True, "up")
    silent = wordpiece()
    silent.normalizer = normalizers.Replace(Regex("."), "")
    with pytest.raises(EncodingError, match="it makes no tokens of text"):
        Encoder(silent, 12, False)
    panics = wordpiece()
    panics.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    encoder = Encoder(panics, 12, False)
    with pytest.raises(EncodingError, match="Onig: Regex search error: retry-limit-in-match over"):
        encoder.encode([("a" * 40 + "b",)])


def test_one_row_is_no_plural() -> None:
    assert [counted(1), counted(2), counted(1, 1), counted(3, 1)] == [
        "1 row",
        "2 rows",
        "1 question",
        "1 question, 3 windows",
    ]
    assert counted(1, 2) == "2 questions, 1 window"
    assert counted(12345, separator=",") == "12,345 rows"
