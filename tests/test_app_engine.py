"""`q8trt.Engine` against transformers' own model and tokenizer, and how it is opened, used and closed."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("torch", reason="torch, the reference, is not installed")
from app_fixtures import ITEMS, LONG, MAX_LENGTH, REGRESSION, SINGLE, TASKS, changed, engine_folder, reference
from conftest import ARCHITECTURES

import q8trt
from q8trt import Answer, ArrayError, BackendError, ClosedError, ConfigError, Engine, EngineError, InputError, PairError
from q8trt.engine.manifest_file import load_manifest
from q8trt.engine.shapes import ShapeProfile
from q8trt.inference.answers import answers
from q8trt.tasks.data.encoding import Encoder
from q8trt.tasks.data.tokenizer_file import open_tokenizer

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("app")
    return {name: engine_folder(root / name, task) for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def engines(folders: dict[str, Path]) -> Iterator[dict[str, Engine]]:
    opened = {name: Engine.load(folder, device="cpu") for name, folder in folders.items()}
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture
def engine(engines: dict[str, Engine]) -> Engine:
    return engines["regression"]


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder of one's own, of the regression task."""
    return Path(shutil.copytree(folders["regression"], tmp_path / "engine"))


# Answers


@pytest.mark.parametrize("kind", TASKS)
def test_logits_are_those_of_transformers(engines: dict[str, Engine], kind: str) -> None:
    expected = reference(TASKS[kind], ITEMS[kind])
    assert np.ptp(expected, axis=0).min() > 0.1  # items that all answer the same would show nothing
    np.testing.assert_allclose(engines[kind].logits(ITEMS[kind]), expected, atol=2e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_so_are_those_of_other_architectures(tmp_path: Path, architecture: str) -> None:
    with Engine.load(engine_folder(tmp_path / "engine", REGRESSION, architecture), device="cpu") as engine:
        expected = reference(REGRESSION, ITEMS["regression"], architecture)
        np.testing.assert_allclose(engine.logits(ITEMS["regression"]), expected, atol=2e-5)


def test_a_regression_answers_scores(engine: Engine) -> None:
    scores = engine.predict(ITEMS["regression"])
    assert all(type(score) is float for score in scores)
    np.testing.assert_allclose(scores, reference(REGRESSION, ITEMS["regression"])[:, 0], atol=2e-5)


@pytest.mark.parametrize("kind", ["single", "pairs"])
def test_a_classification_answers_labels_and_probabilities(engines: dict[str, Engine], kind: str) -> None:
    import torch

    labels = TASKS[kind].labels
    expected = torch.softmax(torch.from_numpy(reference(TASKS[kind], ITEMS[kind])), dim=1).numpy()
    found = engines[kind].predict(ITEMS[kind])
    for answer, row in zip(found, expected, strict=True):
        assert isinstance(answer, Answer)
        assert list(answer.probabilities) == labels
        np.testing.assert_allclose(list(answer.probabilities.values()), row, atol=2e-5)
        assert answer.label == labels[row.argmax()]
        assert answer.score == max(answer.probabilities.values())


def test_the_label_is_that_of_the_largest_logit() -> None:
    logits = np.array([[2.0, 1.0, -1.0], [0.0, 0.0, 1.0], [-1e4, 1e4, 3.0], [1.0, 1.0, 1.0]], np.float32)
    found = answers(logits, TASKS["pairs"])
    assert [each.label for each in found] == ["entailment", "contradiction", "neutral", "entailment"]
    assert found[0].probabilities == pytest.approx(
        {"entailment": 0.7054, "neutral": 0.2595, "contradiction": 0.0351}, abs=1e-4
    )
    assert found[2].score == 1.0
    assert sum(found[1].probabilities.values()) == pytest.approx(1)


def test_any_number_in_input_order_whatever_the_batches(folders: dict[str, Path]) -> None:
    words = ["a", "dog", "runs", "over", "the", "small", "white", "house"]
    items = [(" ".join(RNG.choice(words, RNG.integers(1, 9))), str(number)) for number in range(45)]
    expected = reference(REGRESSION, items)[:, 0]
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"buckets": (16,)}, {"buckets": (5, 9, 16)}):
        with Engine.load(folders["regression"], device="cpu", **options) as engine:
            np.testing.assert_allclose(engine.predict(items), expected, atol=2e-5)
            np.testing.assert_allclose(engine.predict(iter(items)), expected, atol=2e-5)
            np.testing.assert_allclose(engine.predict(items[:1]), expected[:1], atol=2e-5)


def test_texts_too_long_are_cut_as_in_training_and_counted(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "q8trt.inference")
    with Engine.load(folders["regression"], device="cpu") as engine:
        engine.predict([("short", "text"), (LONG, "short")])
        assert engine.truncated == 1
        engine.predict([(LONG, LONG), ("a", LONG)])
        assert engine.truncated == 3
    assert [record.message for record in caplog.records] == [
        f"a text is longer than {MAX_LENGTH} tokens and was cut, as in training; Engine.truncated counts them"
    ]


def test_a_text_that_just_fits_is_not_counted(folders: dict[str, Path]) -> None:
    with Engine.load(folders["single"], device="cpu") as engine:
        engine.predict(["a " * (MAX_LENGTH - 2)])  # and [CLS] and [SEP]
        assert engine.truncated == 0
        engine.predict(["a " * (MAX_LENGTH - 1)])
        assert engine.truncated == 1


def test_shorter_buckets_cut_earlier(folders: dict[str, Path]) -> None:
    with Engine.load(folders["single"], device="cpu", buckets=(4, 8)) as engine:
        assert engine.limits.max_length == 8
        np.testing.assert_allclose(engine.logits(["a dog " * 9]), engine.logits(["a dog a dog a dog"]), atol=1e-6)
        assert engine.truncated == 1


def test_the_side_that_the_tokenizer_cuts_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["single"], tmp_path / "engine"))
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"truncation_side": "right"', '"truncation_side": "left"'))
    if '"left"' not in path.read_text(encoding="utf-8"):
        path.write_text(path.read_text(encoding="utf-8").replace("{", '{"truncation_side": "left",', 1))
    with Engine.load(changed(folder), device="cpu") as engine:
        end = " ".join(LONG.split()[-(MAX_LENGTH - 2) :])
        np.testing.assert_allclose(engine.logits([LONG]), engine.logits([end]), atol=1e-6)


@pytest.mark.parametrize("kind", TASKS)
def test_an_answer_that_is_not_finite_is_an_error(
    engines: dict[str, Engine], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label of NaN would look like any other: an FP16 graph may overflow on some texts."""
    engine, items = engines[kind], ITEMS[kind][:2]
    logits = np.zeros((2, len(TASKS[kind].labels) or 1), np.float32)
    logits[1, 0] = np.nan
    monkeypatch.setattr(engine._model, "logits", lambda tokens: logits[: len(tokens.input_ids)])
    message = "the answer to item 1 is NaN or infinite"
    with pytest.raises(BackendError, match=message):
        engine.predict(items)
    with pytest.raises(BackendError, match=message):
        asyncio.run(engine.apredict(items))
    assert len(engine.predict(items[:1])) == len(asyncio.run(engine.apredict(items[:1]))) == 1


def test_no_items_have_no_answers(engine: Engine) -> None:
    assert engine.predict([]) == engine.predict(iter(())) == asyncio.run(engine.apredict([])) == []
    assert engine.logits([]).shape == (0, engine.manifest.model.num_labels)


# Bad input


@pytest.mark.parametrize(
    ("items", "kind", "index", "message"),
    [
        ([("a", "b"), ("a", "")], InputError, 1, r"item 1: the text is empty \(''\)"),
        ([("a", " \n")], InputError, 0, r"item 0: the text is empty \(' \\n'\)"),
        (["one"], PairError, 0, r"item 0: one text, but STS-B takes pairs: give \(text, other\)"),
        ([("one",)], PairError, 0, "item 0: one text"),
        (("one", "other"), PairError, 0, "item 0: one text"),
        ([("a", "b", "c")], PairError, 0, "item 0: 3 texts, but STS-B takes pairs"),
        ([()], PairError, 0, "item 0: 0 texts"),
        ([("a", "b"), None], InputError, 1, "item 1: NoneType None is not text; STS-B takes a pair of strings"),
        ([("a", 3)], InputError, 0, r"item 0: tuple \('a', 3\) is not text"),
        ([(b"a", b"b")], InputError, 0, "is not text"),
        ([{"a": 1}], InputError, 0, "item 0: dict .* is not text"),
        ([float("nan")], InputError, 0, "item 0: float nan is not text"),
        (
            "one text",
            InputError,
            None,
            r"expected a list of items, got str 'one text'; for one item give \[\(text, other\)\]",
        ),
        (3, InputError, None, "expected a list of items, got int 3"),
        ([("a", "\ud800")], InputError, 0, r"item 0: the text '\\ud800' contains half a surrogate pair"),
    ],
)
def test_bad_items_of_a_pair_task(engine: Engine, items: object, kind: type, index: int | None, message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        engine.predict(items)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert caught.value.index == index
    assert "\n" not in str(caught.value)


def test_a_pair_given_to_a_task_of_single_texts(engines: dict[str, Engine]) -> None:
    with pytest.raises(PairError, match="item 1: 2 texts, but SST-2 takes single texts: give a string"):
        engines["single"].predict(["fine", ("a", "b")])
    assert engines["single"].predict([("one",)]) == engines["single"].predict(["one"])


def test_check_is_what_predict_checks(engine: Engine) -> None:
    assert engine.check(["a", "b"]) == ("a", "b")
    with pytest.raises(InputError, match=r"^the text is empty"):
        engine.check(("a", ""))
    with pytest.raises(PairError, match=r"^one text"):
        engine.check("a")


def test_errors_have_one_root() -> None:
    for error in (InputError, PairError, ArrayError, ClosedError, ConfigError, EngineError, BackendError):
        assert issubclass(error, q8trt.Q8TRTError)
    assert issubclass(PairError, InputError)
    assert issubclass(ArrayError, InputError)


# Arrays


def arrays(shape: tuple[int, ...] = (3, 7), dtype: type = np.int32) -> dict[str, np.ndarray]:
    ids = RNG.integers(5, 50, shape).astype(dtype)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_run_answers_logits_of_token_arrays(engine: Engine, dtype: type) -> None:
    import torch
    from app_fixtures import model_of

    given = arrays(dtype=dtype)
    tensors = {name: torch.from_numpy(array.astype(np.int64)) for name, array in given.items()}
    with torch.no_grad():
        expected = model_of(REGRESSION)(**tensors).logits.numpy()
    found = engine.run(given)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_array_equal(engine.run(tensors), found)  # whatever NumPy takes for an array
    np.testing.assert_array_equal(engine.run(given | {"position_ids": None}), found)


class OnGpu:
    """An array on the GPU with the attributes of torch's and CuPy's."""

    __cuda_array_interface__ = {"shape": (3, 7), "typestr": "<i4", "data": (1, True), "version": 3}  # noqa: RUF012


class OnOther:
    """The same by DLPack: 2 is kDLCUDA."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


WRONG = {
    "no dict": (lambda: [1, 2], r"expected a dict of arrays by name, \['input_ids', .*\]; got list"),
    "missing": (lambda: {"input_ids": arrays()["input_ids"]}, r"needs the arrays .*; \['attention_mask', 'token_type_ids'\]"),
    "dtype": (lambda: arrays(dtype=np.float32), "input_ids is float32; expected integers, such as int32"),
    "strings": (lambda: arrays() | {"input_ids": "text"}, "input_ids is <U4; expected integers"),
    "shapes": (lambda: arrays() | {"attention_mask": np.ones((3, 8), int)}, r"share one shape .*'attention_mask': \(3, 8\)"),
    "rank": (lambda: arrays((7,)), r"share one shape \(batch, sequence\) without 0; got .*\(7,\)"),
    "none": (lambda: arrays((0, 7)), r"without 0; got .*\(0, 7\)"),
    "positions": (lambda: arrays((1, 65)), "65 tokens, but the model has 64 positions"),
    "vocabulary": (lambda: arrays() | {"input_ids": np.full((3, 7), 99999)}, "input_ids from 99999 to 99999; expected 0 to "),
    "negative": (lambda: arrays() | {"input_ids": np.full((3, 7), -1)}, "input_ids from -1 to -1; expected 0 to "),
    "types": (lambda: arrays() | {"token_type_ids": np.full((3, 7), 2)}, "token_type_ids from 2 to 2; expected 0 to 1"),
    "mask": (lambda: arrays() | {"attention_mask": np.full((3, 7), 5)}, "attention_mask from 5 to 5; expected 0 to 1"),
    "device": (lambda: arrays() | {"input_ids": OnGpu()}, "input_ids is on a GPU, and this engine runs on the CPU"),
    "dlpack": (lambda: arrays() | {"input_ids": OnOther()}, "input_ids is on a GPU, and this engine runs on the CPU"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(engine: Engine, case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(ArrayError, match=message):
        engine.run(make())  # type: ignore[arg-type]


# Threads and event loops


def test_many_threads_get_their_own_answers(engine: Engine) -> None:
    items = [(f"a {number} dog", "the house " * (number % 9 + 1)) for number in range(120)]
    expected = engine.predict(items)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda item: engine.predict([item])[0], items))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_apredict_answers_each_its_own(engine: Engine) -> None:
    items = [(f"a {number} dog", "the house " * (number % 5 + 1)) for number in range(60)]
    expected = engine.predict(items)

    async def everything() -> tuple[list[object], object]:
        single = asyncio.gather(*(engine.apredict(item) for item in items))
        return await single, await engine.apredict(items[:3])

    found, three = asyncio.run(everything())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(three, expected[:3], atol=1e-6)


def test_apredict_refuses_what_predict_refuses_and_others_go_on(engine: Engine) -> None:
    async def mixed() -> list[object]:
        waiting = [engine.apredict(item) for item in (("a", "b"), "one", ("a", ""), ("c", "d"))]
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(mixed())
    assert [type(each) for each in found] == [float, PairError, InputError, float]


def test_a_long_request_is_encoded_outside_of_the_event_loop_and_the_batch_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    encode = engine._text.encode

    def noting(rows: list[tuple[str, ...]]) -> object:
        threads.append(threading.current_thread().name)
        return encode(rows)

    monkeypatch.setattr(engine._text, "encode", noting)
    asyncio.run(engine.apredict(("a", "b")))
    asyncio.run(engine.apredict([("a " * 5000, "b"), ("a", "b")]))
    assert threads[0] == "MainThread"
    assert threads[1].startswith("asyncio_")


def test_many_rows_are_encoded_a_window_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [(f"a {number} dog", "the house " * (number % 9 + 1)) for number in range(45)]
    expected, sizes = engine.predict(items), []
    encode = engine._text.encode
    monkeypatch.setattr(engine._text, "encode", lambda rows: sizes.append(len(rows)) or encode(rows))
    monkeypatch.setattr("q8trt.inference.engine._WINDOW", 20)
    np.testing.assert_allclose(engine.predict(items), expected, atol=1e-6)
    assert sizes == [20, 20, 5]
    assert engine.logits(items).shape == (45, 1)


def test_of_a_text_of_ten_megabytes_a_part_is_encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole took 17 s and 4.3 GiB."""
    cut = [("!" * 900, "a"), ("the fox " * 90, "a dog " * 120)]
    long = [("!" * 10_000_000, "a"), ("the fox " * 700_000, "a dog " * 800_000)]
    expected, ids, characters = engine.predict(cut), Encoder._ids, 0

    def counted(encoder: Encoder, texts: list[str]) -> list[list[int]]:
        nonlocal characters
        characters += sum(map(len, texts))
        return ids(encoder, texts)

    monkeypatch.setattr(Encoder, "_ids", counted)
    np.testing.assert_allclose(engine.predict(long), expected, atol=1e-6)
    assert 0 < characters < 2**19


# Opening and closing


def test_a_closed_engine_says_so(copied: Path) -> None:
    with Engine.load(copied, device="cpu") as engine:
        engine.predict([("a", "b")])
    engine.close()
    for use in (lambda: engine.predict([("a", "b")]), lambda: engine.run({}), lambda: engine.logits([("a", "b")])):
        with pytest.raises(ClosedError, match=r"this engine is closed; load it again: Engine\.load\(folder\)"):
            use()
    with pytest.raises(ClosedError, match="this engine is closed"):
        asyncio.run(engine.apredict(("a", "b")))


def test_what_an_engine_says_of_itself(engine: Engine, folders: dict[str, Path]) -> None:
    assert (engine.backend, engine.device) == ("onnxruntime", "cpu")
    assert engine.folder == folders["regression"]
    assert engine.manifest.task == REGRESSION
    assert repr(engine) == "<q8trt.Engine STS-B fp32 on onnxruntime, cpu>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'; choose one of cuda, cpu"),
        ({"backend": "tensort"}, "unknown backend 'tensort'; choose one of .*did you mean 'tensorrt'"),
        ({"backend": "onnxruntime", "device": "cuda"}, 'backend="onnxruntime" runs on the CPU'),
        ({"backend": "tensorrt", "device": "cpu"}, 'backend="tensorrt" runs on the GPU'),
        ({"buckets": (16, 8)}, r"buckets must be ascending lengths in tokens, .*; got \(16, 8\)"),
        ({"buckets": ()}, "buckets must be ascending"),
        ({"buckets": (0, 8)}, "buckets must be ascending"),
        ({"buckets": (8, 32)}, "bucket 32 cannot run: the engine takes up to 16"),
        ({"buckets": (2,)}, "bucket 2 leaves no room for text: STS-B needs 5 tokens or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
        ({"contexts": 0}, "contexts must be 1 or more, got 0"),
        ({"max_batch": 0}, "max_batch must be 1 or more"),
        ({"max_wait_ms": -1}, "max_wait_ms 0 or more; got 32, -1"),
    ],
)
def test_options_that_cannot_be(folders: dict[str, Path], options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine.load(
            folders["regression"], **{"device": "cpu", **options} if options.get("backend") is None else options
        )


def test_a_damaged_folder_is_refused_before_anything_is_opened(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json is 2 bytes, the manifest says"):
        Engine.load(copied, device="cpu")
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be read: "):
        Engine.load(changed(copied), device="cpu")
    (copied / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match=r"has no tokenizer\.json; build the engine again"):
        Engine.load(changed(copied), device="cpu")
    with pytest.raises(EngineError, match="does not exist"):
        Engine.load(copied / "none")


def model_field(copied: Path, **fields: int) -> Path:
    manifest = load_manifest(copied, verify=False)
    return changed(copied, model=replace(manifest.model, **fields))


def test_facts_that_contradict_the_files_are_refused(copied: Path) -> None:
    vocabulary = "says that model.pad_token_id is 9999, but tokenizer.json has no such token"
    pad = r"says that model.pad_token_id is 3, but tokenizer_config.json names '\[PAD\]', which is 0"
    cases: list[tuple[dict[str, int], str]] = [
        ({"pad_token_id": 9999}, vocabulary),
        ({"pad_token_id": 3}, pad),
        ({"max_position_embeddings": 500, "max_seq_length": 500}, "does not take 500 tokens of this tokenizer, of"),
    ]
    before = load_manifest(copied, verify=False)
    for fields, message in cases:
        with pytest.raises(EngineError, match=message):
            Engine.load(model_field(copied, **fields), device="cpu")
        changed(copied, model=before.model)
    with pytest.raises(
        EngineError, match="says that the inputs are input_ids, attention_mask, but the model has input"
    ):
        Engine.load(changed(copied, inputs=["input_ids", "attention_mask"]), device="cpu")
    labels = replace(before.task, labels=["a", "b"], is_regression=False)
    model = replace(before.model, num_labels=2)
    with pytest.raises(EngineError, match=r"model.num_labels is 2, but the model answers logits of shape \(1, 1\)"):
        Engine.load(changed(copied, inputs=before.inputs, task=labels, model=model), device="cpu")


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    """Its ids reach beyond the table of embeddings."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(copied / "tokenizer.json"))
    tokenizer.add_tokens([f"word{number}" for number in range(99)])
    tokenizer.save(str(copied / "tokenizer.json"))
    with pytest.raises(EngineError, match=r"the model does not take 16 tokens of this tokenizer, of .* ids"):
        Engine.load(changed(copied), device="cpu")


def test_ids_past_a_gap_count(copied: Path) -> None:
    """Each id needs its row of the table, however few tokens there are."""
    path = copied / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["vocab"]["dog"] = 99_999
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(EngineError, match="does not take 16 tokens of this tokenizer, of 100000 ids"):
        Engine.load(changed(copied), device="cpu")


def test_padding_and_truncation_of_the_tokenizer_are_not_run(copied: Path, engine: Engine) -> None:
    """Padding to 10^9 tokens would end the process."""
    path = copied / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    padding = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    document["padding"] = {"strategy": {"Fixed": 2_000_000}, **padding}
    document["truncation"] = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(document), encoding="utf-8")
    assert len(open_tokenizer(path).encode("a dog").ids) == 4
    with Engine.load(changed(copied), device="cpu") as other:
        assert other.predict([("a plane", LONG)]) == engine.predict([("a plane", LONG)])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "[" * 5000, "nested more than 100 levels deep"),
        (
            "tokenizer.json",
            '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}}}',
            "tokenizer.json cannot be",
        ),
        ("tokenizer_config.json", '{"truncation_side": "up"}', "truncation_side is 'up', expected 'right' or 'left'"),
        ("tokenizer_config.json", "[]", "truncation_side is None, expected"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json cannot be read: "),
    ],
)
def test_hostile_tokenizer_files(copied: Path, name: str, text: str, message: str) -> None:
    (copied / name).write_text(text)
    with pytest.raises(EngineError, match=message):
        Engine.load(changed(copied), device="cpu")


def test_a_template_of_unknown_tokens_is_refused(copied: Path) -> None:
    text = (copied / "tokenizer.json").read_text(encoding="utf-8")
    assert '"id": "[CLS]",\n          "type_id"' in text
    (copied / "tokenizer.json").write_text(
        text.replace('"id": "[CLS]",\n          "type_id"', '"id": "x",\n "type_id"')
    )
    with pytest.raises(EngineError, match=r"post_processor\.single names 'x', which special_tokens lacks"):
        Engine.load(changed(copied), device="cpu")


def test_a_regex_that_cannot_be_run_is_one_line(copied: Path) -> None:
    """It panics in Rust, as an exception that is no `Exception`."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    def with_regex(text: str) -> None:
        tokenizer = Tokenizer.from_file(str(copied / "tokenizer.json"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(text), "isolated")
        tokenizer.save(str(copied / "tokenizer.json"))
        changed(copied)

    with_regex("([A-Za-z ,0-9]+)+$")
    with pytest.raises(EngineError, match=r"tokenizer\.json cannot be read: Onig: Regex search error: retry-limit"):
        Engine.load(copied, device="cpu")
    with_regex("(x+)+$")
    with (
        Engine.load(copied, device="cpu") as engine,
        pytest.raises(EngineError, match=r"tokenizer\.json cannot encode a text: Onig: Regex search error"),
    ):
        engine.predict([("x" * 40 + "y", "a")])


def test_without_a_gpu_the_cpu_is_taken(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8trt.inference.opening.gpus", list)
    with Engine.load(folders["regression"]) as engine:
        assert engine.backend == "onnxruntime"


def test_the_lengths_are_the_plans_on_the_cpu_too(copied: Path) -> None:
    """So that an engine answers the same wherever it runs."""
    changed(copied, profiles=[ShapeProfile((1, 1), (2, 8), (4, 12))])
    with Engine.load(copied, device="cpu") as engine:
        assert engine.limits.max_length == 12
        assert engine.limits.batch_size == 8
        engine.predict([(LONG, "b")])
        assert engine.truncated == 1


def test_the_package_offers_what_an_app_needs() -> None:
    assert q8trt.Engine is Engine
    assert {"Engine", "Answer", "Q8TRTError"} <= set(q8trt.__all__)
    assert all(hasattr(q8trt, name) for name in q8trt.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        q8trt.nothing  # noqa: B018


def test_single_texts_of_a_tuple(engines: dict[str, Engine]) -> None:
    assert engines["single"].predict(("one", "other")) == engines["single"].predict(["one", "other"])
    assert SINGLE.is_pair is False
