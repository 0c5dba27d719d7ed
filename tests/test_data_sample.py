"""The built-in sample: what it promises, and that its scores follow from meaning rather than from wording."""

import random

import numpy as np
import pytest
from scipy.stats import pearsonr

from q8trt.errors import DataError
from q8trt.tasks.data import DataConfig, load_dev, load_train, sample_examples
from q8trt.tasks.data.sample import Scene, inflect, render, similarity, words

TRAIN, DEV = sample_examples("train"), sample_examples("dev")
MAN, DOG = ("man",), ("dog", "hound")
SCENE = Scene(0, subject=MAN, verb=("slice",), object=("+onions",), tense=("present",), place=("in the kitchen",))


def test_shape_and_origin():
    assert (len(TRAIN), len(DEV)) == (1600, 400)
    for split, examples in (("train", TRAIN), ("dev", DEV)):
        assert examples.is_sample
        assert (examples.split, examples.source, examples.task.name) == (split, "built-in sample (not GLUE)", "STS-B")
        assert examples.labels.dtype == np.float32
        assert examples.labels.min() >= 0.0
        assert examples.labels.max() <= 5.0


def test_the_same_everywhere():
    assert (TRAIN.fingerprint, DEV.fingerprint) == ("12ad4a589467007f", "b14f2c84340a84d2")


def test_no_pair_twice_in_either_order_and_no_pair_of_equals():
    pairs = [frozenset(pair) for each in (TRAIN, DEV) for pair in zip(each.first, each.second, strict=True)]
    assert len(set(pairs)) == 2000
    assert {len(pair) for pair in pairs} == {2}


def test_sentences_have_6_to_20_words_a_capital_and_a_full_stop():
    sentences = [*TRAIN.first, *TRAIN.second, *DEV.first, *DEV.second]
    assert {6 <= len(sentence.split()) <= 20 for sentence in sentences} == {True}
    assert all(sentence[0].isupper() and sentence.endswith(".") and "+" not in sentence for sentence in sentences)
    assert len(set(sentences)) > 3500


def test_scores_cover_the_whole_range():
    for examples in (TRAIN, DEV):
        counts, _ = np.histogram(examples.labels, bins=5, range=(0, 5))
        assert (counts >= 0.1 * len(examples)).all()


def test_word_overlap_tells_something_but_far_from_all():
    def overlap(first, second):
        one, other = set(first.lower().split()), set(second.lower().split())
        return len(one & other) / len(one | other)

    overlaps = [overlap(*pair) for pair in zip(DEV.first, DEV.second, strict=True)]
    assert 0.4 < pearsonr(overlaps, DEV.labels).statistic < 0.75


@pytest.mark.parametrize(
    ("slots", "score"),
    [
        ({}, 5.0),
        ({"tense": ("past",)}, 0.8 + 4.2 * 0.85),
        ({"place": None}, 0.8 + 4.2 * 0.68),
        ({"place": ("at home",)}, 0.8 + 4.2 * 0.6),
        ({"subject": DOG}, 0.8 + 4.2 * 0.5),
        ({"object": ("cake",)}, 0.8 + 4.2 * 0.4),
        ({"verb": ("eat",)}, 0.8 + 4.2 * 0.32),
        ({"verb": ("eat",), "object": ("cake",), "subject": DOG}, 0.8 + 4.2 * 0.32 * 0.4 * 0.5),
        ({"topic": 1}, 0.5),
        ({"topic": 1, "subject": DOG}, 0.0),
    ],
)
def test_similarity_is_the_product_in_the_docstring(slots, score):
    other = Scene(**{**vars(SCENE), **slots})
    assert similarity(SCENE, other) == pytest.approx(score, abs=1e-9)
    assert similarity(other, SCENE) == similarity(SCENE, other)


def test_wordings_of_one_scene():
    rng = random.Random(0)
    wordings = {render(rng, SCENE) for _ in range(200)}
    assert "A man is slicing the onions in the kitchen." in wordings
    assert "Some onions are being sliced by the man in the kitchen." in wordings
    assert "In the kitchen, the man is slicing some onions." in wordings
    assert "There is a man slicing some onions in the kitchen." in wordings
    past = Scene(0, subject=("+boys",), verb=("cut up",), object=("apple",), tense=("past",), object_adjective=("old",))
    wordings = {render(rng, past) for _ in range(200)}
    assert "The boys cut up an old apple." in wordings
    assert "An old apple was cut up by some boys." in wordings


@pytest.mark.parametrize(
    ("verb", "forms"),
    [
        ("slice", ("slicing", "sliced", "sliced")),
        ("wash", ("washing", "washed", "washed")),
        ("carry", ("carrying", "carried", "carried")),
        ("play with", ("playing with", "played with", "played with")),
        ("dig up", ("digging up", "dug up", "dug up")),
        ("throw", ("throwing", "threw", "thrown")),
    ],
)
def test_inflect(verb, forms):
    assert inflect(verb) == forms


def test_no_topic_lists_a_word_under_two_concepts():
    # Else a "changed" slot could be worded exactly like the unchanged one.
    for topic in words().topics:
        for slot, concepts in topic.items():
            forms = [form for concept in concepts for form in concept]
            assert len(set(forms)) == len(forms), (slot, forms)
            assert all(form and form == form.strip() for form in forms)


def test_options_reach_it():
    config = DataConfig("stsb", sample=True)
    assert load_train(config).fingerprint == TRAIN.fingerprint
    assert load_dev(config)["dev"].fingerprint == DEV.fingerprint


def test_no_other_split():
    with pytest.raises(DataError, match="the built-in sample has no split 'test'; it has train, dev"):
        sample_examples("test")
