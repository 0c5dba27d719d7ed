"""The engine on TensorRT, over the stand-ins of `tensorrt_fakes`: which backend, which shapes, how many threads."""

from __future__ import annotations

import ctypes
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE

pytest.importorskip("onnx", reason="onnx is not installed")
from engine_fixtures import TABLE, tiny_logits, tiny_onnx
from tensorrt_fakes import batch, install, nothing_left
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from q8trt import ArrayError, BackendError, ClosedError, ConfigError, Engine, EngineError
from q8trt.engine.manifest import BackendInfo, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import write_manifest
from q8trt.engine.preflight import Problem
from q8trt.engine.shapes import ShapeProfile, bucket_profiles
from q8trt.hardware.gpu import Gpu
from q8trt.inference import opening
from q8trt.inference.batching import BatchLimits, batch_limits, in_parallel
from q8trt.inference.opening import choose
from q8trt.inference.pool import RunnerPool
from q8trt.quantization.precision import Precision
from q8trt.runtime.tensorrt import runner as tensorrt_runner

L40S = Gpu("NVIDIA L40S", "8.9", 46068, "570.86.15")
LABELS = ["no", "maybe", "yes"]
MANIFEST = Manifest(
    task=TaskInfo("custom", LABELS, False, False, "accuracy"),
    model=ModelInfo("tiny", "bert", 3, 64, 0, 16),
    precision=Precision.INT8,
    recipe=None,
    inputs=["input_ids", "attention_mask"],
    opset=20,
    profiles=[ShapeProfile((1, 1), (2, 8), (4, 16))],
    backend=BackendInfo("tensorrt", "10.13.2.6", ["8.9"]),
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "f", "g"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An engine folder whose plan computes `tiny_logits`; its tokenizer knows as many words as the table has rows."""
    assert len(VOCABULARY) == len(TABLE)
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "model.plan").write_bytes(b"plan")
    tiny_onnx(folder / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(folder, MANIFEST)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine with a GPU and TensorRT, which finds nothing wrong with a plan."""
    monkeypatch.setattr(opening, "gpus", lambda: [L40S])
    monkeypatch.setattr(tensorrt_runner, "preflight", lambda *arguments, **named: [])
    return install("tensorrt", monkeypatch.setattr)


def expected(text: str) -> np.ndarray:
    ids = [2, *(VOCABULARY.index(word) for word in text.split()), 3]
    return tiny_logits(np.array([ids]), np.ones((1, len(ids)), int))[0]


TEXTS = ["a", "b c", "d e f g", "a b c d e f g", "c", "g g", "e"]


def test_texts_run_on_the_plan_in_the_order_given(folder: Path, fake: types.SimpleNamespace) -> None:
    with Engine.load(folder) as engine:
        assert (engine.backend, engine.device) == ("tensorrt", "NVIDIA Fake")
        scale = np.array([len(row.split()) + 2 for row in TEXTS])[:, None] / padded(engine, TEXTS)
        np.testing.assert_allclose(
            engine.logits(TEXTS), np.stack([expected(text) for text in TEXTS]) * scale, rtol=1e-5
        )
        assert engine.limits == BatchLimits(16, (16,), 4)
    assert nothing_left(fake)


def padded(engine: Engine, texts: list[str]) -> np.ndarray:
    """The length that each row was padded to: the tiny model takes the mean over padding too, of zeros."""
    lengths = sorted((len(text.split()) + 2, index) for index, text in enumerate(texts))
    found = np.zeros((len(texts), 1))
    for start in range(0, len(texts), engine.limits.batch_size):
        rows = lengths[start : start + engine.limits.batch_size]
        for _, index in rows:
            found[index] = next(bucket for bucket in engine.limits.buckets if bucket >= rows[-1][0])
    return found


def test_a_context_for_each_thread_up_to_the_limit(folder: Path, fake: types.SimpleNamespace) -> None:
    with Engine.load(folder, contexts=3) as engine, ThreadPoolExecutor(8) as pool:
        assert len(fake.engine.contexts) == 3
        found = list(pool.map(lambda text: engine.logits([text])[0], TEXTS * 20))
        np.testing.assert_array_equal(found, [engine.logits([text])[0] for text in TEXTS] * 20)
        assert len(fake.engine.contexts) == 3
    assert nothing_left(fake)


def test_arrays_of_any_kind_are_the_runners_to_judge(folder: Path, fake: types.SimpleNamespace) -> None:
    with Engine.load(folder) as engine:
        given = batch(3, 5)
        np.testing.assert_array_equal(engine.run(given), tiny_logits(**given))
        with pytest.raises(ArrayError, match=r"the batch has shape \(5, 5\); the plan accepts"):
            engine.run(batch(5, 5))
        with pytest.raises(ArrayError, match="input_ids is int64 on the GPU; the engine reads it in place, as int"):
            engine.run(given | {"input_ids": device_array(fake, given["input_ids"])})
        on_device = {name: device_array(fake, array.astype(np.int32)) for name, array in given.items()}
        np.testing.assert_array_equal(engine.run(on_device), tiny_logits(**given))


def device_array(fake: types.SimpleNamespace, array: np.ndarray) -> Any:
    """`array` in memory that the stand-in takes for the GPU's, shown by nothing but `__cuda_array_interface__`."""
    pointer = fake.cuda.cudaMalloc(array.nbytes)[1]
    ctypes.memmove(pointer, array.ctypes.data, array.nbytes)
    interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (pointer, False), "version": 3}
    return types.SimpleNamespace(__cuda_array_interface__=interface)


def test_memory_that_is_short_for_a_second_context_frees_the_first(folder: Path, fake: types.SimpleNamespace) -> None:
    fake.cuda.fail, fake.cuda.fail_from = "cudaMalloc", 3
    with pytest.raises(BackendError):
        Engine.load(folder, contexts=2)
    assert nothing_left(fake)


def test_a_plan_that_cannot_run_is_an_error_where_a_gpu_is(
    folder: Path, fake: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem("its plan is for compute capability 9.0; NVIDIA L40S has 8.9", "rebuild it: `python build`")
    monkeypatch.setattr(tensorrt_runner, "preflight", lambda *arguments, **named: [problem])
    for device in (None, "cuda"):
        with pytest.raises(
            BackendError, match=r"for compute capability 9\.0; .*; or run the same graph .*device=\"cpu\""
        ):
            Engine.load(folder, device=device)
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    with Engine.load(folder, device="cpu") as engine:
        assert (engine.backend, engine.device) == ("onnxruntime", "cpu")


def test_a_message_proposes_the_cpu_once(
    folder: Path, fake: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem("no GPU", "run on ONNX Runtime (device cpu, or backend onnxruntime)", only_other_runtime=True)
    monkeypatch.setattr(tensorrt_runner, "preflight", lambda *arguments, **named: [problem])
    with pytest.raises(
        BackendError, match=r"here: no GPU; run on ONNX Runtime \(device cpu, or backend onnxruntime\)$"
    ):
        Engine.load(folder, device="cuda")


@pytest.mark.parametrize(
    ("cards", "device", "backend", "choice"),
    [
        ([L40S], None, None, "tensorrt"),
        ([], None, None, "onnxruntime"),
        ([], "cuda", None, "tensorrt"),  # the runner then says that there is no GPU
        ([L40S], "cpu", None, "onnxruntime"),
        ([L40S], None, "onnxruntime", "onnxruntime"),
        ([], None, "ONNXRuntime", "onnxruntime"),
        ([], None, "rtx", "tensorrt_rtx"),
        ([L40S], None, "auto", "tensorrt"),
    ],
)
def test_who_runs_it(
    monkeypatch: pytest.MonkeyPatch, cards: list[Gpu], device: str | None, backend: str | None, choice: str
) -> None:
    monkeypatch.setattr(opening, "gpus", lambda: cards)
    assert choose(MANIFEST, device, backend).name == choice


def test_a_gpu_and_an_engine_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "gpus", lambda: [L40S])
    with pytest.raises(EngineError, match=r'has no plan for the GPU; build one .*device="cpu"'):
        choose(replace(MANIFEST, backend=None), None, None)


# Lengths and batches


def plan(*profiles: ShapeProfile, trained: int = 128) -> Manifest:
    return replace(MANIFEST, profiles=list(profiles), model=replace(MANIFEST.model, max_seq_length=trained))


@pytest.mark.parametrize(
    ("profiles", "trained", "found"),
    [
        ([ShapeProfile()], 128, BatchLimits(128, (16, 32, 64, 128), 32)),
        (bucket_profiles((32, 64, 128), 8, 64), 128, BatchLimits(128, (16, 32, 64, 128), 32)),
        ([ShapeProfile((1, 64), (8, 128), (16, 128))], 128, BatchLimits(128, (64, 128), 16)),
        ([ShapeProfile((8, 128), (8, 128), (8, 128))], 128, BatchLimits(128, (128,), 8, 8)),
        ([ShapeProfile((1, 256), (8, 256), (8, 256))], 128, BatchLimits(128, (256,), 8)),
        ([ShapeProfile((1, 1), (8, 48), (8, 48))], 128, BatchLimits(48, (16, 32, 48), 8)),
        ([ShapeProfile((1, 1), (8, 200), (8, 200))], 128, BatchLimits(128, (16, 32, 64, 128), 8)),
    ],
)
def test_lengths_and_batches_follow_the_plan(profiles: Any, trained: int, found: BatchLimits) -> None:
    assert batch_limits(plan(*profiles, trained=trained), True, None, 32) == found


def test_batches_are_as_large_as_suits_what_runs_them() -> None:
    assert batch_limits(plan(ShapeProfile((1, 1), (8, 128), (64, 128))), True, None).batch_size == 32
    assert batch_limits(plan(ShapeProfile((1, 1), (8, 128), (16, 128))), True, None).batch_size == 16
    assert batch_limits(plan(ShapeProfile((1, 1), (8, 128), (64, 128))), False, None).batch_size == 8


def test_without_a_plan_every_length_runs_as_it_is() -> None:
    assert batch_limits(plan(trained=5), False, None, 5) == BatchLimits(5, (1, 2, 3, 4, 5), 5)
    profile = ShapeProfile((4, 1), (4, 12), (4, 12))
    assert batch_limits(plan(profile, trained=20), False, None, 32) == BatchLimits(12, tuple(range(1, 13)), 32)


def test_buckets_that_the_plan_does_not_take() -> None:
    manifest = plan(ShapeProfile((1, 64), (8, 128), (16, 128)))
    assert batch_limits(manifest, True, (64, 100), 32) == BatchLimits(100, (64, 100), 16)
    with pytest.raises(ConfigError, match=r"bucket 32 cannot run: the plan takes 1x64 to 16x128, best at 8x128, and"):
        batch_limits(manifest, True, (32, 64), 32)
    assert batch_limits(manifest, False, (32, 64), 32) == BatchLimits(64, (32, 64), 32)


def test_batches_are_filled_up_to_what_the_plan_takes(folder: Path, fake: types.SimpleNamespace) -> None:
    fixed = ShapeProfile((4, 1), (4, 16), (4, 16))
    write_manifest(folder, replace(MANIFEST, profiles=[fixed]))
    fake.engine.profiles = (fixed,)
    shapes = []
    with Engine.load(folder, contexts=1) as engine:
        runner = engine._pool.first
        infer = runner.infer
        runner.infer = lambda arrays: shapes.append(arrays["input_ids"].shape) or infer(arrays)  # type: ignore
        assert len(engine.predict(TEXTS)) == len(TEXTS)
        assert engine.logits(["a"]).shape == (1, 3)
    assert shapes == [(4, 16)] * 3


def test_batches_in_parallel_keep_their_order_and_are_made_as_they_are_needed() -> None:
    made: list[int] = []
    most = 0

    def numbers() -> Iterator[int]:
        for number in range(40):
            made.append(number)
            yield number

    def slow(number: int) -> int:
        nonlocal most
        most = max(most, len(made) - number)
        time.sleep(0.001 * (number % 3))
        return number * 2

    assert in_parallel(slow, numbers(), 3) == [number * 2 for number in range(40)]
    assert most <= 8
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda number: 1 // (number - 20), numbers(), 3)


# The pool


class Counting:
    """A runner that notes how many use it at once."""

    def __init__(self) -> None:
        self.users = self.most = self.closed = 0
        self.lock = threading.Lock()

    def use(self) -> None:
        with self.lock:
            self.users += 1
            self.most = max(self.most, self.users)
        time.sleep(0.002)
        with self.lock:
            self.users -= 1

    def close(self) -> None:
        assert self.users == 0
        self.closed += 1


@pytest.mark.parametrize("shared", [True, False])
def test_a_runner_is_lent_to_one_thread_or_shared_by_all(shared: bool) -> None:
    lent = [Counting() for _ in range(1 if shared else 3)]
    pool = RunnerPool(lent, shared)  # type: ignore[arg-type]

    def work(_: int) -> None:
        with pool.runner() as runner:
            runner.use()  # type: ignore[attr-defined]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(60)))
    assert all((each.most > 1) is shared for each in lent)
    pool.close()
    pool.close()
    assert [each.closed for each in lent] == [1] * len(lent)


def test_closing_waits_for_what_runs_and_turns_away_who_waits() -> None:
    pool = RunnerPool([Counting()], shared=False)  # type: ignore[list-item]
    refused = threading.Event()

    def wait() -> None:
        try:
            with pool.runner():
                pass
        except ClosedError:
            refused.set()

    with pool.runner():
        waiting = threading.Thread(target=wait)
        waiting.start()
        closing = threading.Thread(target=pool.close)
        closing.start()
        assert refused.wait(PATIENCE)
        assert closing.is_alive()
        assert pool.first.closed == 0  # type: ignore[attr-defined]
    closing.join(PATIENCE)
    waiting.join(PATIENCE)
    assert pool.first.closed == 1  # type: ignore[attr-defined]
