"""The built-in sample: sentence pairs with a similarity from 0 to 5, made by rule. It is not GLUE.

A scene fills the slots of a sentence: who does what to what, where, and how. A pair is one scene worded twice, or a
scene and an edit of it. Each worded scene draws its synonyms, its articles and its order (active, passive, place first,
"there is ..."), so equal meaning seldom means equal words. The score comes from the two scenes alone: with
w_s the weight of slot s (`_CHANGED`, or `_DROPPED` where only one side has it) and f the score of scenes that share
nothing but their topic,

    score = f + (5 - f) * product over the differing slots s of (1 - w_s),   f = 0.8, or 0 for different topics,

plus Gaussian jitter (standard deviation 0.3) that stands for the disagreement of annotators: nothing can reach a
correlation of 1.

``sample_words.json`` holds the topics, each with the words that make sense together, and the irregular verbs. Synonyms are
joined by ``/``, concepts by ``,``; ``+`` marks a plural noun. Verbs are infinitives.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from q8trt.errors import DataError
from q8trt.files import read_json
from q8trt.tasks.data.examples import Examples, collect
from q8trt.tasks.glue import get_task

Concept = tuple[str, ...]
"""Words or phrases that mean the same."""

SIZES = {"train": 1600, "dev": 400}
SOURCE = "built-in sample (not GLUE)"

_SEED = 8
_JITTER = 0.3
_TOPIC_FLOOR = 0.8
_LENGTHS = range(6, 21)  # words in a sentence

_CHANGED = {
    "verb": 0.68,
    "object": 0.6,
    "subject": 0.5,
    "place": 0.4,
    "extra": 0.3,
    "object_adjective": 0.22,
    "subject_adjective": 0.2,
    "tense": 0.15,
}
#: In the order in which they are drawn.
_SLOTS = ("subject", "verb", "object", "tense", "place", "extra", "subject_adjective", "object_adjective")
_DROPPED = {"place": 0.32, "extra": 0.25, "object_adjective": 0.16, "subject_adjective": 0.14}


@dataclass(frozen=True)
class Scene:
    """The content of a sentence, apart from its wording; an optional slot is None if the sentence leaves it out."""

    topic: int
    subject: Concept
    verb: Concept
    object: Concept
    tense: Concept
    place: Concept | None = None
    extra: Concept | None = None
    subject_adjective: Concept | None = None
    object_adjective: Concept | None = None


@dataclass(frozen=True)
class Words:
    """The vocabulary.

    Attributes:
        topics: for each topic, slot of a scene -> the concepts that it can take.
        irregular: infinitive -> present participle, past tense and past participle.
    """

    topics: tuple[dict[str, tuple[Concept, ...]], ...]
    irregular: dict[str, tuple[str, ...]]


@cache
def words() -> Words:
    """Return the vocabulary of ``sample_words.json``."""
    document = read_json(Path(__file__).with_name("sample_words.json"))
    shared = {"extra": document["extras"], "tense": "present, past, future"}
    return Words(
        tuple({slot: _concepts({**topic, **shared}[slot]) for slot in _SLOTS} for topic in document["topics"].values()),
        {verb: tuple(forms.split()) for verb, forms in document["irregular"].items()},
    )


def _concepts(text: str) -> tuple[Concept, ...]:
    return tuple(tuple(form.strip() for form in concept.split("/")) for concept in text.split(","))


def _with(scene: Scene, **slots: Concept | None) -> Scene:
    return replace(scene, **slots)  # type: ignore[arg-type]  # no caller names the topic


def _draw(rng: random.Random, topic: int) -> Scene:
    scene = Scene(topic, **{slot: rng.choice(concepts) for slot, concepts in words().topics[topic].items()})
    # A place is nearly always there, the rest about every other time.
    shares = {"place": 0.85, "extra": 0.4, "subject_adjective": 0.45, "object_adjective": 0.5}
    return _with(scene, **{slot: None for slot, share in shares.items() if rng.random() > share})


def _change(rng: random.Random, scene: Scene, slot: str) -> Scene:
    """Return `scene` with another concept in `slot`."""
    old = getattr(scene, slot)
    return _with(scene, **{slot: rng.choice([new for new in words().topics[scene.topic][slot] if new != old])})


def _change_details(rng: random.Random, scene: Scene, count: int) -> Scene:
    """Return `scene` with `count` optional slots dropped where they are present, added where they are not, or changed."""
    for slot in rng.sample(sorted(_DROPPED), count):
        drop = getattr(scene, slot) is not None and rng.random() < 0.6
        scene = _with(scene, **{slot: None}) if drop else _change(rng, scene, slot)
    return scene


def _change_core(rng: random.Random, scene: Scene, *slots: str) -> Scene:
    """Return `scene` with other concepts in `slots`, and at times one detail changed too."""
    for slot in slots:
        scene = _change(rng, scene, slot)
    return _change_details(rng, scene, rng.choice((0, 0, 1)))


def _other_topic(rng: random.Random, scene: Scene) -> Scene:
    return _draw(rng, (scene.topic + rng.randrange(1, len(words().topics))) % len(words().topics))


# Share of pairs -> the edit that makes the second scene.
_EDITS: tuple[tuple[int, Callable[[random.Random, Scene], Scene]], ...] = (
    (22, lambda rng, scene: scene),
    (6, lambda rng, scene: _change(rng, scene, "tense")),
    (16, lambda rng, scene: _change_details(rng, scene, 1)),
    (8, lambda rng, scene: _change_details(rng, scene, 2)),
    (10, lambda rng, scene: _change_core(rng, scene, "object")),
    (9, lambda rng, scene: _change_core(rng, scene, "subject")),
    (10, lambda rng, scene: _change_core(rng, scene, "verb")),
    (7, lambda rng, scene: _change_core(rng, scene, *rng.sample(("object", "subject", "verb"), 2))),
    (12, lambda rng, scene: _draw(rng, scene.topic)),
    (14, _other_topic),
)


def similarity(first: Scene, second: Scene) -> float:
    """Return the score of two scenes, 0 to 5, before jitter; symmetric."""
    if first.topic != second.topic:
        return 0.5 if first.subject == second.subject else 0.0
    share = 1.0
    for slot in _CHANGED:
        one, other = getattr(first, slot), getattr(second, slot)
        if one != other:
            share *= 1 - (_DROPPED if one is None or other is None else _CHANGED)[slot]
    return _TOPIC_FLOOR + (5 - _TOPIC_FLOOR) * share


def inflect(verb: str) -> tuple[str, str, str]:
    """Return the present participle, past tense and past participle of an infinitive; only its first word changes."""
    head, space, rest = verb.partition(" ")
    if head in words().irregular:
        forms = words().irregular[head]
    elif head.endswith("e"):
        forms = (head[:-1] + "ing", head + "d", head + "d")
    elif head.endswith("y") and head[-2] not in "aeiou":
        forms = (head + "ing", head[:-1] + "ied", head[:-1] + "ied")
    else:
        forms = (head + "ing", head + "ed", head + "ed")
    participle, past, passive = (form + space + rest for form in forms)
    return participle, past, passive


def _noun(rng: random.Random, noun: Concept, adjective: Concept | None) -> tuple[str, bool]:
    """Return a noun phrase, and whether it is plural."""
    word = rng.choice(noun)
    plural = word.startswith("+")
    phrase = ([rng.choice(adjective)] if adjective else []) + [word.lstrip("+")]
    indefinite = "some" if plural else "an" if phrase[0][0] in "aeiou" else "a"
    return " ".join((rng.choice((indefinite, "the")), *phrase)), plural


def _predicate(tense: str, plural: bool, verb: str, passive: bool) -> str:
    """Return the verb phrase: ``"is slicing"``, ``"sliced"``, ``"will be sliced"`` (passive)."""
    participle, past, done = inflect(verb)
    be, was = ("are", "were") if plural else ("is", "was")
    if passive:
        return {"present": f"{be} being {done}", "past": f"{was} {done}", "future": f"will be {done}"}[tense]
    return {"present": f"{be} {participle}", "past": past, "future": f"will {verb}"}[tense]


def render(rng: random.Random, scene: Scene) -> str:
    """Return one wording of a scene, with a capital and a full stop."""
    subject, subject_plural = _noun(rng, scene.subject, scene.subject_adjective)
    target, target_plural = _noun(rng, scene.object, scene.object_adjective)
    verb, tense = rng.choice(scene.verb), scene.tense[0]
    place = rng.choice(scene.place) if scene.place else ""
    extra = rng.choice(scene.extra) if scene.extra else ""
    order = rng.choice(("active", "active", "passive", "place first", "there is"))
    clause = f"{subject} {_predicate(tense, subject_plural, verb, passive=False)} {target}"
    if order == "passive":
        clause = f"{target} {_predicate(tense, target_plural, verb, passive=True)} by {subject}"
    elif order == "there is" and tense == "present" and not subject.startswith("the "):
        clause = f"there {'are' if subject_plural else 'is'} {subject} {inflect(verb)[0]} {target}"
    place_first = order == "place first" and place
    sentence = f"{place}, {clause} {extra}" if place_first else f"{clause} {extra} {place}"
    sentence = " ".join(sentence.split())
    return f"{sentence[0].upper()}{sentence[1:]}."


@cache
def _pairs() -> tuple[tuple[str, str, float], ...]:
    """Return all pairs of all splits, no two of them alike."""
    rng = random.Random(_SEED)
    shares, edits = zip(*_EDITS, strict=True)
    pairs: dict[frozenset[str], tuple[str, str, float]] = {}
    while len(pairs) < sum(SIZES.values()):
        scene = _draw(rng, rng.randrange(len(words().topics)))
        edited = rng.choices(edits, shares)[0](rng, scene)
        first, second = render(rng, scene), render(rng, edited)
        score = min(5.0, max(0.0, similarity(scene, edited) + rng.gauss(0.0, _JITTER)))
        lengths_fit = all(len(text.split()) in _LENGTHS for text in (first, second))
        if first != second and lengths_fit:
            pairs.setdefault(frozenset((first, second)), (first, second, round(score, 2)))
    return tuple(pairs.values())


def sample_examples(split: str) -> Examples:
    """Return a split of the built-in sample in the form of STS-B: ``"train"`` has 1,600 pairs, ``"dev"`` 400.

    Both are the same on every machine, and share no pair.

    Raises:
        DataError: no such split.
    """
    if split not in SIZES:
        raise DataError(f"the built-in sample has no split {split!r}; it has {', '.join(SIZES)}")
    start = SIZES["train"] if split == "dev" else 0
    rows = [((first, second), score) for first, second, score in _pairs()[start : start + SIZES[split]]]
    return collect(rows, task=get_task("STS-B"), split=split, source=SOURCE, is_sample=True)
