"""Losses, learning rates, gradients and precision of a training stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from tiny_data import write_mrpc, write_sts_b
from torch import nn

from q8trt import training
from q8trt.data import DataConfig, load_dev, load_train, tokenize
from q8trt.errors import ConfigError
from q8trt.tasks import get_task
from q8trt.trainer_callbacks import StepTimer
from q8trt.training import Distillation, Stage, logit_distance, train_stage
from q8trt.training_config import TrainingConfig

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
def stage(tiny_tokenizer: Any, tiny_model: Callable[..., Any], tmp_path: Path) -> Stage:
    """FP32 fine-tuning of the tiny model on tiny STS-B."""
    data = DataConfig("STS-B", data_dir=str(write_sts_b(tmp_path / "data")), max_seq_length=32)
    train, dev = (tokenize(rows, tiny_tokenizer, 32) for rows in (load_train(data), load_dev(data)["dev"]))
    return Stage("fp32", tiny_model("bert"), train, dev, 1.0, 1e-3, tmp_path, 32)


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


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_distance_is_scipys(temperature: float) -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 7, 3))
    p, q = (scipy.special.softmax(logits / temperature, axis=1) for logits in (student, teacher))
    expected = np.mean([scipy.stats.entropy(q[i], p[i]) for i in range(7)]) * temperature**2
    got = logit_distance(torch.tensor(student), torch.tensor(teacher), False, temperature)
    assert float(got) == pytest.approx(expected, rel=1e-5)
    assert float(logit_distance(torch.tensor(teacher), torch.tensor(teacher), False, temperature)) == 0


def test_regression_distance_is_the_mean_square() -> None:
    student, teacher = np.random.default_rng(1).normal(size=(2, 7, 1))
    got = logit_distance(torch.tensor(student), torch.tensor(teacher), True, 3.0)
    assert float(got) == pytest.approx(np.mean((student - teacher) ** 2), rel=1e-5)


class _Stub(nn.Module):
    """Answers fixed logits and, with labels, a fixed loss."""

    def __init__(self, logits: torch.Tensor, loss: float = 0.0) -> None:
        super().__init__()
        self.logits, self.loss, self.asked = logits, torch.tensor(loss), []

    def forward(self, **inputs: Any) -> Any:
        self.asked.append(sorted(inputs))
        return SimpleNamespace(loss=self.loss if "labels" in inputs else None, logits=self.logits)


@pytest.mark.parametrize("is_training", [True, False])
def test_loss_mixes_labels_and_teacher(is_training: bool) -> None:
    student, teacher = _Stub(torch.tensor([[1.0], [2.0]]), loss=7.0), _Stub(torch.tensor([[2.0], [5.0]]))
    student.train(is_training)
    trainer = SimpleNamespace(distillation=Distillation(teacher, 0.25, 2.0, 1.0), task=STS_B)
    inputs = {"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2)}
    loss, outputs = training._Trainer.compute_loss(trainer, student, inputs, return_outputs=True)
    # distances 1 and 3: mean square (1 + 9) / 2 = 5; while evaluating, the label loss alone
    assert float(loss) == (0.25 * 7 + 2 * 5 if is_training else 7)
    assert teacher.asked == ([["input_ids"]] if is_training else [])
    assert outputs.logits is student.logits


def test_learning_rate_warms_up_and_decays_polynomially(stage: Stage, trainers: list[Any]) -> None:
    config = replace(QUICK, max_steps=20, eval_steps=20, save_steps=20, lr_end=1e-5, lr_power=2.0)
    train_stage(stage, STS_B, _Tokenizer, config)
    peak, end, steps, warmup = 1e-3, 1e-5, 20, 2

    def rate(step: int) -> float:
        if step < warmup:
            return peak * step / warmup
        return (peak - end) * (1 - (step - warmup) / (steps - warmup)) ** 2 + end

    # the log of step n shows the rate that the step was taken with, the schedule's value at n - 1
    assert logged(trainers[0], "learning_rate") == pytest.approx([rate(step) for step in range(steps)])


def test_teacher_is_used_and_left_alone(stage: Stage, tiny_model: Callable[..., Any]) -> None:
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


def test_qat_moves_weights_and_freezes_amax(stage: Stage) -> None:
    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    recipe = load_recipe("linear")
    insert_quantizers(stage.model, recipe)
    rows = [stage.train[index] for index in range(8)]
    calibrate(stage.model, recipe, [{k: torch.tensor([row[k]]) for k in row if k != "labels"} for row in rows])
    before = clone(stage.model)
    amax = [name for name in before if name.endswith("_amax")]
    assert len(amax) == 2 * 10
    train_stage(replace(stage, name="int8"), STS_B, _Tokenizer, QUICK)
    after = stage.model.state_dict()
    assert [name for name in amax if not torch.equal(before[name], after[name])] == []
    moved = [name for name, _ in stage.model.named_parameters() if not torch.equal(before[name], after[name])]
    assert {name for name in before if "encoder" in name and name.endswith("dense.weight")} <= set(moved)


def test_group_by_length_fills_batches_with_similar_lengths(stage: Stage, trainers: list[Any]) -> None:
    def spread(config: TrainingConfig) -> float:
        train_stage(stage, STS_B, _Tokenizer, config)
        lengths = [batch["attention_mask"].sum(1) for batch in trainers[-1].get_train_dataloader()]
        assert sum(map(len, lengths)) == len(stage.train)
        return float(np.mean([int(rows.max() - rows.min()) for rows in lengths]))

    pairs = replace(QUICK, per_device_train_batch_size=2)
    assert spread(replace(pairs, group_by_length=True)) < 0.5 * spread(pairs)


def test_no_shuffle_takes_rows_in_file_order(stage: Stage, trainers: list[Any]) -> None:
    train_stage(stage, STS_B, _Tokenizer, replace(QUICK, no_shuffle=True))
    labels = torch.cat([batch["labels"] for batch in trainers[-1].get_train_dataloader()])
    assert labels.tolist() == stage.train.labels.tolist()


@pytest.mark.parametrize("bound", [0.01, 0.0])
def test_gradients_are_clipped(bound: float, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_bf16_computes_in_bf16_on_the_cpu(stage: Stage, trainers: list[Any]) -> None:
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


def test_best_evaluation_between_checkpoints_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated every step and saved every fourth: the best of all is what the model ends with."""
    scores = iter([0.1, 0.5, 0.9, 0.2])
    states: list[dict[str, torch.Tensor]] = []

    def compute(*_: Any) -> dict[str, float]:
        states.append(clone(stage.model))
        return {"pearson": next(scores)}

    monkeypatch.setattr(training, "compute_from_logits", compute)
    result = train_stage(stage, STS_B, _Tokenizer, replace(QUICK, eval_steps=1))
    assert result.best_metric == 0.9
    final = stage.model.state_dict()
    assert [all(torch.equal(final[n], state[n]) for n in final) for state in states] == [False, False, True, False]


def test_step_seconds_leave_evaluation_out(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    original = training.compute_from_logits
    monkeypatch.setattr(training, "compute_from_logits", lambda *args: time.sleep(0.4) or original(*args))
    result = train_stage(stage, STS_B, _Tokenizer, replace(QUICK, eval_steps=1))
    assert 0 < result.step_seconds_median <= result.step_seconds_mean * 2
    assert result.step_seconds_mean < 0.4


def test_classification_trains_with_a_kl_teacher(
    tiny_tokenizer: Any, tiny_model: Callable[..., Any], tmp_path: Path, trainers: list[Any]
) -> None:
    """With the teacher's logits alone (label weight 0) the student comes nearer to the teacher."""
    data = DataConfig("MRPC", data_dir=str(write_mrpc(tmp_path / "data")), max_seq_length=32)
    train, dev = (tokenize(rows, tiny_tokenizer, 32) for rows in (load_train(data), load_dev(data)["dev"]))
    student, teacher = tiny_model("bert", 2, seed=0), tiny_model("bert", 2, seed=1)
    config = replace(QUICK, max_steps=30, eval_steps=30, save_steps=30, dropout=0.0)
    kl = Stage("int8", student, train, dev, 1.0, 1e-3, tmp_path, 32, Distillation(teacher, 0.0, 1.0, 2.0))
    train_stage(kl, get_task("MRPC"), _Tokenizer, config)
    losses = logged(trainers[0], "loss")
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_fp16_without_a_gpu_is_refused_in_one_line(stage: Stage) -> None:
    with pytest.raises(ConfigError, match=r"--fp16 .*CUDA.*--bf16"):
        train_stage(stage, STS_B, _Tokenizer, replace(QUICK, fp16=True))


class _TokenizerStub:
    """What `train_stage` asks of a tokenizer."""

    pad_token_id = 0
    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def save_pretrained(self, folder: str) -> None:
        """Nothing to save."""


_Tokenizer = _TokenizerStub()
