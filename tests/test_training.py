"""Losses, learning rates, gradients and precision of a training stage."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import write_mrpc, write_sts_b
from torch import nn

from q8trt.errors import ConfigError
from q8trt.quantization.insertion import model_quantizers
from q8trt.quantization.recipe import QatSpec, load_recipe
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig, load_dev, load_train, tokenize
from q8trt.tasks.glue import get_task
from q8trt.tasks.metrics import METRICS
from q8trt.training import stage as training
from q8trt.training.callbacks import StepTimer
from q8trt.training.distillation import Distillation
from q8trt.training.stage import Quantization, TrainingStage, train_stage

QUICK = TrainingConfig(
    max_steps=4, eval_steps=4, save_steps=4, logging_steps=1, per_device_train_batch_size=8, use_cpu=True
)
STS_B = get_task("STS-B")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stage(tiny_tokenizer: Any, tiny_model: Callable[..., Any], tmp_path: Path) -> TrainingStage:
    """FP32 fine-tuning of the tiny model on tiny STS-B."""
    data = DataConfig("STS-B", data_dir=str(write_sts_b(tmp_path / "data")), max_seq_length=32)
    train, dev = (tokenize(rows, tiny_tokenizer, 32) for rows in (load_train(data), load_dev(data)["dev"]))
    return TrainingStage("fp32", tiny_model("bert"), train, dev, 1.0, 1e-3, tmp_path, 32)


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every trainer that `train_stage` makes."""
    made: list[Any] = []
    original = training._Trainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(training._Trainer, "__init__", init)
    return made


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def clone(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_learning_rate_warms_up_and_decays_polynomially(stage: TrainingStage, trainers: list[Any]) -> None:
    config = replace(QUICK, max_steps=20, eval_steps=20, save_steps=20, lr_end=1e-5, lr_power=2.0)
    train_stage(stage, STS_B, _Tokenizer, config)
    peak, end, steps, warmup = 1e-3, 1e-5, 20, 2

    def rate(step: int) -> float:
        if step < warmup:
            return peak * step / warmup
        return (peak - end) * (1 - (step - warmup) / (steps - warmup)) ** 2 + end

    # the log of step n shows the rate that the step was taken with, the schedule's value at n - 1
    assert logged(trainers[0], "learning_rate") == pytest.approx([rate(step) for step in range(steps)])


@pytest.mark.parametrize(("steps", "ratio", "rates"), [(1, 0.1, [1]), (2, 0.99, [0, 1]), (3, 0.7, [0, 0.5, 1])])
def test_warm_up_ends_before_training_does(
    steps: int, ratio: float, rates: list[float], stage: TrainingStage, trainers: list[Any]
) -> None:
    """Rounded up, it would be as long: the Trainer's schedule divides by the steps that are left."""
    before = clone(stage.model)
    config = replace(QUICK, max_steps=steps, warmup_ratio=ratio, do_eval=False)
    train_stage(stage, STS_B, _Tokenizer, config)
    assert logged(trainers[0], "learning_rate") == pytest.approx([1e-3 * rate for rate in rates])
    assert not torch.equal(before["classifier.weight"], stage.model.state_dict()["classifier.weight"])


def test_teacher_is_used_and_left_alone(stage: TrainingStage, tiny_model: Callable[..., Any]) -> None:
    teacher = tiny_model("bert", seed=5).train()
    before, start = clone(teacher), clone(stage.model)
    alone, taught = copy.deepcopy(stage.model), stage.model
    train_stage(replace(stage, distillation=Distillation(teacher, 0.5, 0.5, 1.0)), STS_B, _Tokenizer, QUICK)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    torch.manual_seed(0)
    train_stage(replace(stage, model=alone, folder=stage.folder / "b"), STS_B, _Tokenizer, QUICK)
    weight = "classifier.weight"
    assert not torch.equal(start[weight], taught.state_dict()[weight])
    assert not torch.equal(alone.state_dict()[weight], taught.state_dict()[weight])


@pytest.fixture
def qat(stage: TrainingStage) -> Callable[..., TrainingStage]:
    """QAT of the calibrated tiny model, `full` recipe, with the given ranges. Smoothed weights would train otherwise."""
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers

    rows = [stage.train[index] for index in range(8)]
    batches = [{k: torch.tensor([row[k]]) for k in row if k != "labels"} for row in rows]

    def build(ranges: str = "frozen") -> TrainingStage:
        recipe = replace(
            load_recipe("full"), qat=QatSpec(ranges, ema_decay=0.5), smoothquant=None, smooth_residuals=None,
            smooth_gelu=None, alternatives=(),
        )  # fmt: skip
        model = copy.deepcopy(stage.model)
        insert_quantizers(model, recipe)
        calibrate(model, recipe, batches)
        quantization = Quantization(recipe, lambda: calibrate(model, recipe, batches))
        return replace(stage, name="int8", model=model, quantization=quantization)

    return build


def amax_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items() if name.endswith("_amax")}


@pytest.mark.parametrize("ranges", ["frozen", "ema", "lsq", "pact"])
def test_qat_moves_weights_and_what_the_recipe_says_of_amax(ranges: str, qat: Any, trainers: list[Any]) -> None:
    stage = qat(ranges)
    before = clone(stage.model)
    train_stage(stage, STS_B, _Tokenizer, QUICK)
    after = stage.model.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "encoder" in name and name.endswith("dense.weight")} <= moved
    amax = amax_of(after).keys()
    assert len(amax) == 3 + 2 * 18
    if ranges == "frozen":
        assert not moved & amax
    else:
        still = {name for name in amax - moved if "softmax_out" not in name}
        assert len(still) <= 4, sorted(still)
        assert not any("softmax_out" in name for name in moved)
    assert not any("_amax" in name for name, _ in stage.model.named_parameters())
    assert all((after[name] > 0).all() for name in amax)
    assert (len(trainers[0].optimizer.param_groups) == 3) == (ranges in ("lsq", "pact"))


def test_learned_ranges_have_a_group_without_weight_decay(qat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of their own, at the range's rate, whose schedule is the other groups'."""
    seen: list[list[dict[str, Any]]] = []

    class Watch(StepTimer):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
            super().on_step_begin()
            seen.append([{**group, "params": list(group["params"])} for group in optimizer.param_groups])

    monkeypatch.setattr(training, "StepTimer", Watch)
    stage = qat("lsq")
    train_stage(stage, STS_B, _Tokenizer, replace(QUICK, range_learning_rate=0.05, weight_decay=0.1))
    decayed, plain, ranges = seen[1]
    assert [group["weight_decay"] for group in seen[1]] == [0.1, 0.0, 0.0]
    assert len(ranges["params"]) == len(amax_of(stage.model.state_dict())) - 2  # softmax_out of two layers is fixed
    assert not {id(p) for p in ranges["params"]} & {id(p) for p in [*decayed["params"], *plain["params"]]}
    for groups in seen:
        assert groups[2]["lr"] == pytest.approx(groups[0]["lr"] * 0.05 / 1e-3)
    assert ranges["lr"] > 0


def test_float_training_leaves_ranges_alone(qat: Any, trainers: list[Any]) -> None:
    """Without `quantization`, which says what to do with them, even the quantizers of a recipe that learns stay."""
    stage = replace(qat("lsq"), quantization=None)
    before = clone(stage.model)
    train_stage(stage, STS_B, _Tokenizer, QUICK)
    assert all(torch.equal(before[name], amax) for name, amax in amax_of(stage.model.state_dict()).items())
    assert len(trainers[0].optimizer.param_groups) == 2


class _States:
    """A record of the state of the quantizers at each call of the model, in training and in evaluation."""

    def __init__(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.training: list[bool] = []
        self.evaluating: list[bool] = []
        self.calibrated = 0
        original = training._Trainer.compute_loss
        quantizers = model_quantizers(model).values()

        def compute_loss(trainer: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            on = {quantizer._if_quant and not quantizer._disabled for quantizer in quantizers}
            assert len(on) == 1
            (self.training if model.training else self.evaluating).append(on.pop())
            return original(trainer, model, *args, **kwargs)

        monkeypatch.setattr(training._Trainer, "compute_loss", compute_loss)


@pytest.mark.parametrize("ranges", ["frozen", "ema", "lsq"])
def test_delayed_start(ranges: str, qat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off for so many steps, then on; evaluated and saved with quantizers on, and ranges that fit the weights."""
    stage = qat(ranges)
    calibrated: list[int] = []
    again = replace(stage.quantization, calibrate=lambda: calibrated.append(1) or stage.quantization.calibrate())
    states = _States(stage.model, monkeypatch)
    config = replace(QUICK, max_steps=6, eval_steps=2, save_steps=2, quant_start_step=3, save_total_limit=5)
    train_stage(replace(stage, quantization=again), STS_B, _Tokenizer, config)
    assert states.training == [False] * 3 + [True] * 3
    assert states.evaluating
    assert all(states.evaluating)
    assert len(calibrated) == 2  # for the evaluation after step 2, and when quantization starts after step 3
    saved = load_file(stage.checkpoints / "checkpoint-2" / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    quantizer = name.replace(".weight", ".weight_quantizer._amax")
    assert torch.equal(saved[quantizer], saved[name].abs().amax(1, keepdim=True))


def test_float_steps_are_those_of_the_float_model(qat: Any, stage: TrainingStage) -> None:
    """Until quantization starts, weights move as the float model's do (up to the rounding of 1 / sqrt(D) on Q)."""
    config = replace(QUICK, max_steps=3, eval_steps=3, save_steps=3, do_eval=False)
    delayed = qat("frozen")
    train_stage(delayed, STS_B, _Tokenizer, replace(config, quant_start_step=3))
    train_stage(stage, STS_B, _Tokenizer, config)
    quantized = delayed.model.state_dict()
    for name, tensor in stage.model.state_dict().items():
        torch.testing.assert_close(quantized[name], tensor, atol=2e-4, rtol=1e-3)
    assert all(quantizer._if_quant for quantizer in model_quantizers(delayed.model).values())


def test_start_beyond_the_end_still_ends_quantized(qat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = qat("frozen")
    states = _States(stage.model, monkeypatch)
    result = train_stage(stage, STS_B, _Tokenizer, replace(QUICK, quant_start_step=100))
    assert states.training == [False] * 4
    assert all(states.evaluating)
    assert result.best_metric is not None
    weight = stage.model.bert.encoder.layer[0].output.dense
    assert torch.equal(weight.weight_quantizer.amax, weight.weight.detach().abs().amax(1, keepdim=True))


@pytest.mark.parametrize("is_training", [True, False])
def test_the_teacher_has_no_say_in_evaluation(is_training: bool) -> None:
    student = nn.Linear(1, 1).train(is_training)
    student.forward = lambda **inputs: SimpleNamespace(loss=torch.tensor(7.0), asked=sorted(inputs))  # type: ignore
    distiller = SimpleNamespace(
        ask_teacher=lambda inputs: "target", wanted={"output_attentions": True}, loss=lambda *args: torch.tensor(3.0)
    )
    trainer: Any = SimpleNamespace(distiller=distiller, accelerator=SimpleNamespace(autocast=contextlib.nullcontext))
    loss, outputs = training._Trainer.compute_loss(trainer, student, {"labels": 1}, return_outputs=True)
    assert float(loss) == (3 if is_training else 7)
    assert outputs.asked == (["labels", "output_attentions"] if is_training else ["labels"])


def test_a_wider_teacher_of_hidden_states_and_attention(
    qat: Any, tiny_model: Callable[..., Any], trainers: list[Any]
) -> None:
    """Its projections train, are in the Trainer's checkpoint for --resume, and not in the model afterwards."""
    teacher = tiny_model("bert", seed=5, hidden_size=48, num_attention_heads=3, num_hidden_layers=4)
    stage = replace(
        qat("lsq"), distillation=Distillation(teacher, 0.5, 0.5, 1.0, hidden_weight=0.1, attention_weight=1)
    )
    keys = stage.model.state_dict().keys()
    train_stage(stage, STS_B, _Tokenizer, QUICK)
    assert stage.model.state_dict().keys() == keys
    saved = load_file(stage.checkpoints / "checkpoint-4" / "model.safetensors")
    projections = sorted(name for name in saved if name.startswith("distillation_projection"))
    assert [tuple(saved[name].shape) for name in projections] == [(48, 32), (48, 32)]
    assert {tuple(state["exp_avg"].shape) for state in trainers[0].optimizer.state.values()} >= {(48, 32)}
    # A run that was stopped between its last step and run.json: the best weights, without the projections.
    resumed = qat("lsq")
    assert train_stage(resumed, STS_B, _Tokenizer, QUICK, resume=True).step_seconds_mean is None
    final = stage.model.state_dict()
    assert [name for name, tensor in resumed.model.state_dict().items() if not torch.equal(tensor, final[name])] == []


def test_group_by_length_fills_batches_with_similar_lengths(stage: TrainingStage, trainers: list[Any]) -> None:
    def spread(config: TrainingConfig) -> float:
        train_stage(stage, STS_B, _Tokenizer, config)
        lengths = [batch["attention_mask"].sum(1) for batch in trainers[-1].get_train_dataloader()]
        assert sum(map(len, lengths)) == len(stage.train)
        return float(np.mean([int(rows.max() - rows.min()) for rows in lengths]))

    pairs = replace(QUICK, per_device_train_batch_size=2)
    assert spread(replace(pairs, group_by_length=True)) < 0.5 * spread(pairs)


@pytest.mark.parametrize("group_by_length", [False, True])
def test_scores_of_training_go_by_row(group_by_length: bool, stage: TrainingStage, trainers: list[Any]) -> None:
    """The last score that training logs is that of its weights, row by row, in whatever order it trains."""
    config = replace(QUICK, group_by_length=group_by_length, per_device_eval_batch_size=2, learning_rate=1e-2)
    train_stage(stage, STS_B, _Tokenizer, config)
    with torch.inference_mode():
        scores = [
            float(stage.model(**{name: torch.tensor([row[name]]) for name in row if name != "labels"}).logits)
            for row in (stage.dev[number] for number in range(len(stage.dev)))
        ]
    expected = float(np.corrcoef(scores, np.asarray(stage.dev.labels))[0, 1])
    assert logged(trainers[-1], "eval_pearson")[-1] == pytest.approx(expected, abs=1e-4)


def test_no_shuffle_takes_rows_in_file_order(stage: TrainingStage, trainers: list[Any]) -> None:
    train_stage(stage, STS_B, _Tokenizer, replace(QUICK, no_shuffle=True))
    labels = torch.cat([batch["labels"] for batch in trainers[-1].get_train_dataloader()])
    assert labels.tolist() == stage.train.labels.tolist()


@pytest.mark.parametrize("bound", [0.01, 0.0])
def test_gradients_are_clipped(bound: float, stage: TrainingStage, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    class Watch(StepTimer):
        def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
            gradients = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
            norms.append(float(torch.stack(gradients).norm()))

    monkeypatch.setattr(training, "StepTimer", Watch)
    train_stage(stage, STS_B, _Tokenizer, replace(QUICK, max_grad_norm=bound))
    assert len(norms) == 4
    if bound:
        assert norms == pytest.approx([bound] * 4, rel=1e-3)
    else:
        assert min(norms) > 0.1


def test_loss_scale_options_reach_the_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, **options: made.append({"device": device, **options}))
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(scaler="torch's own"))
    config = TrainingConfig(loss_scale_value=1024.0, loss_scale_factor=4.0, loss_scale_window=7)
    training._use_loss_scale(trainer, config)
    expected = {"init_scale": 1024.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 7}
    assert made == [{"device": "cuda", **expected}]
    trainer.accelerator.scaler = None  # without --fp16 there is nothing to scale
    training._use_loss_scale(trainer, config)
    assert len(made) == 1
    assert trainer.accelerator.scaler is None


def test_bf16_computes_in_bf16_on_the_cpu(stage: TrainingStage, trainers: list[Any]) -> None:
    kinds: set[torch.dtype] = set()
    stage.model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    start = clone(stage.model)
    result = train_stage(stage, STS_B, _Tokenizer, replace(QUICK, bf16=True))
    assert result.steps == 4
    assert kinds == {torch.bfloat16}
    assert np.isfinite(logged(trainers[0], "loss")).all()
    weights = stage.model.state_dict()
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
    assert any(not torch.equal(start[name], weights[name]) for name in start)


def test_bf16_with_learned_ranges_and_a_teacher(qat: Any, tiny_model: Callable[..., Any], trainers: list[Any]) -> None:
    """The teacher computes in BF16 too, which is what makes it cheap; ranges stay in float32."""
    teacher, kinds = tiny_model("bert", seed=5), set()
    teacher.bert.encoder.layer[0].output.dense.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    lesson = Distillation(teacher, 0.5, 0.5, 1.0, hidden_weight=0.1, attention_weight=0.1)
    stage = replace(qat("lsq"), distillation=lesson)
    before = amax_of(stage.model.state_dict())
    train_stage(stage, STS_B, _Tokenizer, replace(QUICK, bf16=True))
    after = amax_of(stage.model.state_dict())
    assert kinds == {torch.bfloat16}
    assert np.isfinite(logged(trainers[0], "loss")).all()
    assert {amax.dtype for amax in after.values()} == {torch.float32}
    assert sum(not torch.equal(before[name], after[name]) for name in after) > 30


@pytest.mark.parametrize(("higher_is_better", "values"), [(True, (0.1, 0.5, 0.9, 0.2)), (False, (0.8, 0.5, 0.1, 0.7))])
def test_best_evaluation_between_checkpoints_is_kept(
    higher_is_better: bool, values: tuple[float, ...], stage: TrainingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated every step and saved every fourth: the best of all is what the model ends with."""
    monkeypatch.setitem(cast(Any, METRICS), "pearson", replace(METRICS["pearson"], higher_is_better=higher_is_better))
    scores = iter(values)
    states: list[dict[str, torch.Tensor]] = []

    def compute(*_: Any) -> dict[str, float]:
        states.append(clone(stage.model))
        return {"pearson": next(scores)}

    monkeypatch.setattr(training, "score", compute)
    result = train_stage(stage, STS_B, _Tokenizer, replace(QUICK, eval_steps=1))
    assert result.best_metric == values[2]
    final = stage.model.state_dict()
    assert [all(torch.equal(final[n], state[n]) for n in final) for state in states] == [False, False, True, False]


def test_step_seconds_leave_evaluation_out(stage: TrainingStage, monkeypatch: pytest.MonkeyPatch) -> None:
    original, clock, skipped = training.score, time.perf_counter, [0]

    def compute(*args: Any) -> dict[str, float]:
        skipped[0] += 10_000
        return original(*args)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + skipped[0])
    monkeypatch.setattr(training, "score", compute)
    result = train_stage(stage, STS_B, _Tokenizer, replace(QUICK, eval_steps=1))
    assert 0 < result.step_seconds_median <= result.step_seconds_mean * 2
    assert result.step_seconds_mean < 10_000


def test_classification_trains_with_a_kl_teacher(
    tiny_tokenizer: Any, tiny_model: Callable[..., Any], tmp_path: Path, trainers: list[Any]
) -> None:
    """With the teacher's logits alone (label weight 0) the student comes nearer to the teacher."""
    data = DataConfig("MRPC", data_dir=str(write_mrpc(tmp_path / "data")), max_seq_length=32)
    train, dev = (tokenize(rows, tiny_tokenizer, 32) for rows in (load_train(data), load_dev(data)["dev"]))
    student, teacher = tiny_model("bert", 2, seed=0), tiny_model("bert", 2, seed=1)
    config = replace(QUICK, max_steps=30, eval_steps=30, save_steps=30, dropout=0.0)
    kl = TrainingStage("int8", student, train, dev, 1.0, 1e-3, tmp_path, 32, Distillation(teacher, 0.0, 1.0, 2.0))
    train_stage(kl, get_task("MRPC"), _Tokenizer, config)
    losses = logged(trainers[0], "loss")
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_fp16_without_a_gpu_is_refused_in_one_line(stage: TrainingStage) -> None:
    with pytest.raises(ConfigError, match=r"--fp16 .*CUDA.*--bf16"):
        train_stage(stage, STS_B, _Tokenizer, replace(QUICK, fp16=True))


class _TokenizerStub:
    """The attributes of a tokenizer that `train_stage` reads."""

    pad_token_id = 0
    sep_token_id = 3
    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def save_pretrained(self, folder: str) -> None:
        """Nothing to save."""


_Tokenizer = _TokenizerStub()
