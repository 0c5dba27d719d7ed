"""Tiny tokenizers of each kind, and texts that are hard to tokenize."""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Callable
from typing import Any

CORPUS = [
    "the quick brown fox jumps over the lazy dog", "it's we're don't 12345 3.14", "naïve café über Ångström",
    "東京 中文 テスト 한국어", "a plane is taking off!!!", "[mask] <mask> hello world",
] * 3  # fmt: skip
PIECES = [
    "the", "a", "fox", "Plane", "it's", "we're", "x" * 30, "12345", "é", "e\u0301", "ﬁ", "Å", "東京", "中", "テ", "ｶﾞ",
    "한국", "\u1112\u1161", "😀", "👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "\u0301\u0323", "\u0323" * 5,
    "[SEP]", "[CLS]", "[MASK]", "<mask>", "</s>", "<s>", "[UNK]", "[PAD]",
    " ", " ", " ", " ", " ", "  ", "     ", "\t", "\n", "\r\n", "\u00a0", "\u3000",
    "\u200b", "\x00", "\x07", "\ufffd", "\u00ad", "\u202e",
    "!", "!!!", "'", "'r", "``", "''", "-", "_", ".", "##a", "▁", "Ġ", "I\u0307", "ß", "ς",
]  # fmt: skip


def wordpiece(lowercase: bool = True) -> Any:
    """BERT's: normalizer, pre-tokenizer, template with token types."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase + string.digits + "ß中東"
    words = [*special, *letters, *(f"##{c}" for c in letters), *string.punctuation, "the", "fox", "##ane"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_level(prefix: bool = False) -> Any:
    """RoBERTa's: byte-level BPE, two separators between texts, a mask token that takes the blanks before it."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if prefix else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=prefix)
    return tokenizer


def unigram(whole: bool = False) -> Any:
    """XLM-R's: Unigram behind Metaspace; `whole` keeps a text in one piece, as no split does."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [(c, -6.0) for c in [*string.ascii_letters, *string.digits, *"é東京中한국"]]
    pieces = [("▁the", -2.0), ("▁fox", -3.0), ("▁a", -3.0), ("la", -4.0), ("ne", -4.0), ("▁P", -4.5), ("!!", -5.0)]
    vocabulary = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -4.0),
        ("!", -6.0),
        *pieces,
        *letters,
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    space = pre_tokenizers.Metaspace(split=not whole)
    tokenizer.pre_tokenizer = space if whole else pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def metaspace() -> Any:
    """Unigram behind Metaspace alone, which leaves runs of blanks to it."""
    from tokenizers import pre_tokenizers

    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "wordpiece": wordpiece,
    "cased": functools.partial(wordpiece, lowercase=False),
    "byte level": byte_level,
    "prefix": functools.partial(byte_level, prefix=True),
    "unigram": unigram,
    "metaspace": metaspace,
    "whole": functools.partial(unigram, whole=True),
}


def random_text(random: random.Random, pieces: int) -> str:
    """Return pieces of many scripts and kinds side by side, in about half of the texts with plain words among them."""
    chosen = random.sample(PIECES, random.randint(1, 12)) + [" ", "the fox", " a "] * random.randint(0, 2)
    return "".join(random.choice(chosen) for _ in range(pieces))
