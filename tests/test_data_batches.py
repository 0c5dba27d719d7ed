"""Tokenization and padding, against what the transformers tokenizer does itself."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast, DataCollatorWithPadding

from q8trt.errors import ConfigError, DataError
from q8trt.tasks.data import (
    DEFAULT_BUCKETS,
    Collator,
    Examples,
    Features,
    bucket_for,
    bucketed_batches,
    buckets_up_to,
    pad,
    restore_order,
    sample_examples,
    tokenize,
)
from q8trt.tasks.glue import get_task

SAMPLE = sample_examples("dev").take(50)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """WordPiece over the words and letters of the sample; [PAD] is not 0, so that a 0 in its place shows."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({word for text in SAMPLE.first for word in text.lower().strip(".").replace(",", "").split()})
    tokens = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", *".,", *letters, *(f"##{letter}" for letter in letters)]
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*tokens, *words])), encoding="utf-8")
    made = BertTokenizerFast.from_pretrained(folder, model_max_length=512)
    assert made.pad_token_id == 4
    return made


@pytest.fixture(scope="module")
def features(tokenizer):
    return tokenize(SAMPLE, tokenizer, 128)


def texts(first, second=None, labels=None, task="RTE"):
    return Examples(task=get_task(task), split="dev", source="x", first=first, second=second, labels=labels)


def token_features(lengths, labels=None, **fields):
    ids = [[index + 1] * length for index, length in enumerate(lengths)]
    origin = {"task": get_task("RTE"), "split": "dev", "source": "x", "token_type_ids": None}
    return Features(**{**origin, "input_ids": ids, "labels": labels, **fields})


def test_rows_are_the_tokenizer_s_own(features, tokenizer):
    assert len(features) == 50
    for index in (0, 17, -1):
        own = tokenizer(SAMPLE.first[index], SAMPLE.second[index])
        row = features[index]
        assert {name: row[name] for name in own} == dict(own)
        assert row["labels"] == SAMPLE.labels[index]
        assert isinstance(row["labels"], float)
    assert features.lengths.tolist() == [len(row["input_ids"]) for row in features]
    assert (features.task, features.split, features.source, features.is_sample) == (
        SAMPLE.task,
        "dev",
        SAMPLE.source,
        True,
    )


def test_token_types_of_a_pair_by_hand(tokenizer):
    row = tokenize(texts(["a b"], ["c"], np.array([1])), tokenizer, 16)[0]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    a, b, c = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    assert row["input_ids"] == [cls, a, b, sep, c, sep]
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert row["labels"] == 1
    assert isinstance(row["labels"], int)


def test_single_sentences_without_labels(tokenizer):
    row = tokenize(texts(["a b"], task="SST-2"), tokenizer, 16)[0]
    assert row["token_type_ids"] == [0] * 4
    assert "labels" not in row


def test_the_longer_text_is_cut(tokenizer):
    row = tokenize(texts(["a a a a a a a a"], ["b b"]), tokenizer, 8)[0]
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert (row["input_ids"].count(a), row["input_ids"].count(b)) == (3, 2)


def test_a_model_without_token_types(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    names = ["input_ids", "attention_mask"]
    plain = BertTokenizerFast.from_pretrained(tmp_path, model_input_names=names)
    features = tokenize(texts(["a"], ["b"]), plain, 16)
    assert features.token_type_ids is None
    assert list(features[0]) == names
    assert list(pad([features[0]], 0)) == names


@pytest.mark.parametrize("length", [0, 4, 513])
def test_lengths_that_the_model_cannot_take(tokenizer, length):
    with pytest.raises(ConfigError, match=f"max_seq_length {length} must be from 5 to 512 for this model"):
        tokenize(SAMPLE, tokenizer, length)


def test_tokenized_data_pass_through_after_a_check(tokenizer):
    features = token_features([3, 9])
    assert tokenize(features, tokenizer, 9) is features
    with pytest.raises(DataError, match="x: 9 tokens in one example; raise --max_seq_length from 8"):
        tokenize(features, tokenizer, 8)
    foreign = token_features([1], input_ids=[[len(tokenizer)]])
    with pytest.raises(DataError, match=f"x: token id {len(tokenizer)}, but the vocabulary has {len(tokenizer)}"):
        tokenize(foreign, tokenizer, 8)


def test_features_end_and_take(features):
    assert len(list(features)) == 50
    with pytest.raises(IndexError):
        features[50]
    assert features.take(3).lengths.tolist() == features.lengths[:3].tolist()
    assert features.take(3).labels.tolist() == features.labels[:3].tolist()
    assert features.take(None).fingerprint == features.fingerprint != features.take(49).fingerprint


@pytest.mark.parametrize(
    ("length", "bucket"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (128, 128), (257, 512), (512, 512)]
)
def test_bucket_for(length, bucket):
    assert bucket_for(length) == bucket


def test_bucket_for_too_long_and_unsorted():
    assert bucket_for(5, (64, 8)) == 8
    with pytest.raises(DataError, match="513 tokens do not fit the longest bucket, 512; lower --max_seq_length"):
        bucket_for(513)


def test_the_maximum_is_itself_a_bucket():
    assert buckets_up_to(128) == (16, 32, 64, 128)
    assert buckets_up_to(100) == (16, 32, 64, 100)
    assert buckets_up_to(8) == (8,)
    assert buckets_up_to(640) == (*DEFAULT_BUCKETS, 640)


def test_pad_is_the_tokenizer_s_own_padding_to_the_bucket(features, tokenizer):
    rows = [features[index] for index in range(8)]
    longest = max(len(row["input_ids"]) for row in rows)
    assert 16 < longest <= 64
    bucket = 32 if longest <= 32 else 64
    inputs = [{name: row[name] for name in row if name != "labels"} for row in rows]
    own = tokenizer.pad(inputs, padding="max_length", max_length=bucket, return_tensors="np")
    arrays = pad(rows, tokenizer.pad_token_id)
    assert set(arrays) == set(own)
    for name, array in arrays.items():
        assert array.dtype == np.int64
        np.testing.assert_array_equal(array, own[name])


def test_pad_to_the_maximum_where_it_cuts_a_bucket():
    rows = [{"input_ids": [5] * 40}]
    assert pad(rows, 0)["input_ids"].shape == (1, 64)
    assert pad(rows, 0, max_length=48)["input_ids"].shape == (1, 48)
    with pytest.raises(DataError, match="40 tokens do not fit the longest bucket, 39"):
        pad(rows, 0, max_length=39)


def test_collator_against_transformers(features, tokenizer):
    rows = [features[index] for index in range(8)]
    own = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=64)([dict(row) for row in rows])
    batch = Collator(tokenizer.pad_token_id, buckets=(64,))(rows)
    assert set(batch) == set(own)
    for name, tensor in batch.items():
        assert tensor.dtype == (torch.float32 if name == "labels" else torch.int64)
        assert torch.equal(tensor, own[name])


def test_collator_of_classes_and_in_a_loader():
    features = token_features([3, 20, 5], labels=np.array([1, 0, 1]))
    loader = torch.utils.data.DataLoader(features, batch_size=2, collate_fn=Collator(0))
    batches = list(loader)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 32), (1, 16)]
    assert torch.equal(batches[0]["labels"], torch.tensor([1, 0]))
    assert batches[0]["labels"].dtype == torch.int64
    assert "labels" not in Collator(0)([{"input_ids": [1]}])


def test_batches_are_sorted_stable_and_complete():
    lengths = [9, 40, 9, 3, 17, 9]
    features = token_features(lengths, labels=np.array([0, 1, 0, 1, 0, 1]))
    batches = list(bucketed_batches(features, 4, pad_token_id=0))
    assert [batch.indices.tolist() for batch in batches] == [[3, 0, 2, 5], [4, 1]]
    assert [batch.arrays["input_ids"].shape for batch in batches] == [(4, 16), (2, 64)]
    assert [batch.labels.tolist() for batch in batches] == [[1, 0, 0, 1], [0, 1]]
    for batch in batches:
        assert batch.arrays["attention_mask"].sum(axis=1).tolist() == [lengths[index] for index in batch.indices]
        assert batch.arrays["input_ids"][:, 0].tolist() == (batch.indices + 1).tolist()


def test_batches_without_labels_and_of_no_size():
    assert next(bucketed_batches(token_features([2]), 8, 0)).labels is None
    with pytest.raises(ConfigError, match="batch size 0, expected 1 or more"):
        next(bucketed_batches(token_features([2]), 0, 0))


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_restore_order_undoes_the_batches(features, tokenizer, batch_size):
    batches = list(bucketed_batches(features, batch_size, tokenizer.pad_token_id))
    restored = restore_order([batch.labels for batch in batches], [batch.indices for batch in batches])
    np.testing.assert_array_equal(restored, features.labels)
    logits = [np.stack([batch.indices, -batch.indices], axis=1) for batch in batches]
    assert restore_order(logits, [batch.indices for batch in batches])[:, 1].tolist() == [-n for n in range(50)]


@pytest.mark.parametrize("indices", [[0, 0], [0, 2], [0]])
def test_restore_order_wants_a_permutation(indices):
    with pytest.raises(ValueError, match="not a permutation"):
        restore_order([np.zeros(2)], [np.array(indices)])
