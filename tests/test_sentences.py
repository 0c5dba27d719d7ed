"""Sentences whose words have tags: files, the alignment of tokens, metrics; seqeval and transformers are the references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer
from seqeval.metrics import f1_score, precision_score, recall_score
from token_fixtures import TAGS

from q8trt.errors import DataError
from q8trt.tasks.data import Features, tokenize
from q8trt.tasks.data.sentences import Sentences, read_sentences
from q8trt.tasks.glue import task_of_head
from q8trt.tasks.heads import Head, HeadKind
from q8trt.tasks.scoring import score
from q8trt.tasks.tags import has_entities, parse_tag

TASK = task_of_head(Head(HeadKind.TOKEN_CLASSIFICATION, TAGS), is_pair=False, has_labels=True)
WORDS = [["Mary", "Walker", "lives", "in", "Oldtown", "."], ["The", "riverboat", "sings"]]
NAMES = [["B-PER", "I-PER", "O", "O", "B-LOC", "O"], ["O", "B-LOC", "O"]]
IDS = [[TAGS.index(name) for name in row] for row in NAMES]


def conll(separator: str = " ") -> str:
    lines = [f"{word}{separator}POS{separator}{tag}" for word, tag in zip(WORDS[0], NAMES[0], strict=True)]
    others = [f"{word}{separator}POS{separator}{tag}" for word, tag in zip(WORDS[1], NAMES[1], strict=True)]
    return "\n".join(["-DOCSTART- -X- O", "", *lines, "", "", *others])


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def parquet(path: Path, tags: Any, **metadata: Any) -> Path:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"tokens": WORDS, "ner_tags": tags})
    parquet.write_table(
        table.replace_schema_metadata({name: json.dumps(value) for name, value in metadata.items()}), path
    )
    return path


def test_every_format_gives_the_same_sentences(tmp_path: Path) -> None:
    rows = [{"words": words, "tags": tags} for words, tags in zip(WORDS, NAMES, strict=True)]
    turned = [*reversed(TAGS)]  # of a data set whose ids are not the model's
    notes = {"info": {"features": {"ner_tags": {"feature": {"names": turned, "_type": "ClassLabel"}, "_type": "List"}}}}
    paths = [
        write(tmp_path / "a.conll", conll()),
        write(tmp_path / "b.txt", conll("\t")),
        write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, rows))),
        write(
            tmp_path / "d.json", "\n".join(json.dumps({"words": w, "tags": t}) for w, t in zip(WORDS, IDS, strict=True))
        ),
        parquet(tmp_path / "e.parquet", NAMES),
        parquet(tmp_path / "f.parquet", [[turned.index(name) for name in row] for row in NAMES], huggingface=notes),
    ]
    read = [read_sentences(path, TASK, "dev") for path in paths]
    for sentences in read:
        assert (sentences.words, sentences.tags) == (WORDS, IDS)
        assert sentences.first == ["Mary Walker lives in Oldtown .", "The riverboat sings"]
        assert sentences.fingerprint == read[0].fingerprint
    assert (read[-1].text_columns, read[-1].label_column) == (("tokens",), "ner_tags")
    assert read[0].take(1).fingerprint != read[0].fingerprint


def test_parts_of_speech_of_conllu(tmp_path: Path) -> None:
    task = task_of_head(Head(HeadKind.TOKEN_CLASSIFICATION, ("NOUN", "VERB", "DET")), is_pair=False, has_labels=True)
    assert task.metrics == ("token_accuracy",)
    row = "{}\t{}\t_\t{}" + "\t_" * 6
    lines = [
        "# text = The dogs",
        row.format("1-2", "Thedogs", "_"),
        row.format(1, "The", "DET"),
        row.format(2, "dogs", "NOUN"),
    ]
    sentences = read_sentences(write(tmp_path / "a.conllu", "\n".join(lines)), task, "dev")
    assert (sentences.words, sentences.tags) == ([["The", "dogs"]], [[2, 0]])
    with pytest.raises(DataError, match=r"b.conllu:1: 2 columns, expected CoNLL-U's 10, separated by tabs"):
        read_sentences(write(tmp_path / "b.conllu", "The\tDET\n"), task, "dev")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "Mary B-PER\nWalker I-PERSON\n", "a.conll:2: label 'I-PERSON', expected .*mean 'I-PER'"),
        ("a.conll", "\n\nMary\n", r"a.conll:3: 'Mary', expected a word and its tag, separated by a tab or a space"),
        ("a.conll", "", "a.conll: no sentences"),
        ("a.jsonl", "", "a.jsonl: no sentences"),
        ("a.conll", b"\x00\x01\xff", "a.conll:1: "),
        ("a.conll", b"a O " + b"x" * 5_000_000, "a.conll:1: a line of more than"),
        ("a.conll", "a O\n" * 600_000, "a.conll:1: a sentence of more than 1,048,576 characters; a blank line ends one"),
        ("a.xml", "<a/>", "a.xml: unknown extension '.xml' for words with tags; expected one of .conll"),
        ("a.jsonl", '{"words": ["a", "b"], "tags": ["O"]}', "a.jsonl:1: 2 words, but 1 tags; expected one tag for each word"),
        ("a.jsonl", '{"words": "a b", "tags": ["O"]}', "a.jsonl:1: column 'words' has 'a b', expected a list"),
        ("a.jsonl", '{"words": [" "], "tags": ["O"]}', "a.jsonl:1: word ' ', expected a string that is not empty"),
        ("a.jsonl", '{"words": ["a"], "tags": [7]}', "a.jsonl:1: word 1: label 7, expected one of"),
        ("a.jsonl", '{"text": "a b"}', "no column 'words' or 'tokens'; found 'text' .--text_column_names"),
    ],
)  # fmt: skip
def test_bad_input_names_the_place(name: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_sentences(write(tmp_path / name, text), TASK, "dev")
    assert "\n" not in str(error.value)


def test_rows_of_parquet_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.parquet: row 2: 3 words, but 2 tags"):
        read_sentences(parquet(tmp_path / "a.parquet", [NAMES[0], ["O", "O"]]), TASK, "dev")
    with pytest.raises(DataError, match=r"column 'ner_tags' has the type string, expected lists"):
        read_sentences(parquet(tmp_path / "b.parquet", ["O", "O"]), TASK, "dev")


def sentences(words: list[list[str]] = WORDS, tags: list[list[int]] = IDS) -> Sentences:
    return Sentences(
        task=TASK, split="dev", source="here", first=[" ".join(row) for row in words], second=None, labels=None,
        words=words, tags=tags,
    )  # fmt: skip


def test_tokens_are_aligned_as_in_run_ner() -> None:
    tokenizer = make_tokenizer()
    features = tokenize(sentences(), tokenizer, 64)
    assert features.labels is not None
    encoded = tokenizer(WORDS, is_split_into_words=True)
    for row in range(2):
        expected, before = [], None
        for word in encoded.word_ids(row):
            expected.append(-100 if word is None or word == before else IDS[row][word])
            before = word
        assert features[row]["input_ids"] == encoded["input_ids"][row]
        assert features[row]["labels"] == expected
    assert features.select([1])[0] == features[1]
    assert features.take(1).fingerprint != features.fingerprint


def test_tokens_of_byte_level_bpe_and_of_sentencepiece() -> None:
    """Their tokens begin with the space before the word, or are a space alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    for pre, trim in ((pre_tokenizers.ByteLevel(add_prefix_space=False), True), (pre_tokenizers.Metaspace(), False)):
        inner = Tokenizer(models.BPE(unk_token="<unk>"))
        inner.pre_tokenizer = pre
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>", "</s>", "<pad>"])
        inner.train_from_iterator([" ".join(row) for row in WORDS], trainer)
        if trim:
            inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
        else:
            inner.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            pad_token="<pad>",
            model_max_length=64,
            model_input_names=["input_ids", "attention_mask"],
        )
        features = tokenize(sentences(), tokenizer, 64)
        assert features.labels is not None
        for row, labels in enumerate(features.labels):
            assert [label for label in labels.tolist() if label != -100] == IDS[row]
            first = int(np.flatnonzero(labels == TAGS.index("B-LOC"))[0])
            token = inner.id_to_token(features.input_ids[row][first])
            assert token[:1] in "Ġ▁"


def test_words_beyond_the_longest_row_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    features = tokenize(sentences(), make_tokenizer(), 6)
    assert features.lengths.tolist() == [6, 6]
    assert "2 of 2 sentences of dev have more than 6 tokens" in caplog.text


def test_metrics_are_those_of_seqeval() -> None:
    generator = np.random.default_rng(0)
    tags = generator.integers(0, len(TAGS), (40, 9))
    labels = np.empty(40, object)
    labels[:] = [np.concatenate([[-100], row, [-100]]) for row in tags]
    rows = Features(
        task=TASK, split="dev", source="here", input_ids=[[1] * 11] * 40, token_type_ids=None, labels=labels
    )
    predicted = np.where(generator.random((40, 9)) < 0.6, tags, generator.integers(0, len(TAGS), (40, 9)))
    outputs = np.zeros((40, 11, len(TAGS)), np.float32)
    outputs[:, 0, 1] = outputs[:, 10, 2] = 9  # of special tokens, which count in nothing
    np.put_along_axis(outputs[:, 1:10], predicted[..., None], 1, axis=-1)
    names = [[[TAGS[index] for index in row] for row in each.tolist()] for each in (tags, predicted)]
    assert score(rows, outputs.reshape(-1, len(TAGS))) == {
        "entity_f1": pytest.approx(f1_score(*names)),
        "entity_precision": pytest.approx(precision_score(*names)),
        "entity_recall": pytest.approx(recall_score(*names)),
        "token_accuracy": pytest.approx((tags == predicted).mean()),
    }


def test_schemes_of_tags() -> None:
    assert [parse_tag(tag) for tag in ("B-PER", "I-PER", "S-LOC", "E-LOC", "O", "NOUN", "X-Y", "I")] == [
        (True, "PER"), (False, "PER"), (True, "LOC"), (False, "LOC"), (False, "O"), (False, "NOUN"), (False, "X-Y"),
        (False, "I"),
    ]  # fmt: skip
    assert has_entities(TAGS)
    assert not has_entities(("O", "PER"))
    assert not has_entities(("NOUN", "B-PER"))
    assert not has_entities(("O",))


def test_a_tagger_is_trained_from_files(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Fine-tuning and QAT with labels, without any but one option that other tasks lack."""
    import q8trt
    from q8trt.models import read_head
    from q8trt.runs.config import config_of_run

    rows = [{"words": words, "tags": tags} for words, tags in zip(WORDS, NAMES, strict=True)] * 4
    path = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    run = q8trt.finetune(
        task="token-classification", label_list=TAGS, train_file=path, validation_file=path, max_seq_length=16,
        model_name_or_path=tiny_checkpoint, output_dir=tmp_path / "run", recipe="linear", num_train_epochs=12.0, qat_epochs=1.0,
        learning_rate=5e-3, per_device_train_batch_size=4, calibration_samples=8, target="cpu",
    )  # fmt: skip
    assert read_head(str(run.path / "int8")) == Head(HeadKind.TOKEN_CLASSIFICATION, TAGS)
    assert config_of_run(run).data.resolved_task.name == "token-classification"
    assert run.scores["fp32"]["dev"]["entity_f1"] == 1
    assert set(run.scores["int8"]["dev"]) == set(TASK.metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_list": None}, "--task token-classification needs --label_list, the tags"),
        ({"train_file": None, "validation_file": None}, "--task token-classification needs --train_file"),
        ({"task": "question-answering"}, "--label_list is for --task custom"),
        ({"multi_label": True}, "--multi_label is for --task custom"),
        ({"label_list": ("O", "O")}, "needs two or more different labels"),
    ],
)
def test_options_of_a_tagger(options: dict[str, Any], message: str) -> None:
    from q8trt.errors import ConfigError
    from q8trt.tasks.data import DataConfig

    usual = {"task": "token-classification", "label_list": TAGS, "train_file": "a.conll", "validation_file": "b.conll"}
    with pytest.raises(ConfigError, match=message):
        DataConfig(**{**usual, **options})
