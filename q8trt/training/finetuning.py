"""The stages of a run: FP32 fine-tuning, calibration and QAT.

fp32   fine-tune the floating-point model, or load a fine-tuned one (--from_fp32)
ptq    insert quantizers and calibrate: post-training quantization, the last stage of calibrate.py
int8   fine-tune with quantizers and a teacher, which is the FP32 model or --teacher_model_name_or_path
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from q8trt.console.progress import is_main_process, progress
from q8trt.errors import ConfigError, DataError, InterruptedRunError
from q8trt.models import (
    check_head,
    check_rows,
    checkpoints,
    load_config,
    load_tokenizer,
    model_inputs,
    resolve_model,
    set_dropout,
    short_name,
)
from q8trt.models.activation import activation_of, adopt_activation
from q8trt.quantization.libraries import library
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import Recipe
from q8trt.runs.config import FinetuneConfig, last_stage
from q8trt.runs.run import STAGES, Run, StageName
from q8trt.runtime.scores import Evaluation, evaluate
from q8trt.runtime.torch_runner import TorchRunner
from q8trt.tasks.data import DataRecord, Features, load_dev, load_train, record_splits, tokenize
from q8trt.training.calibrating import measure_ranges, quantize

if TYPE_CHECKING:
    from q8trt.models.checkpoints import Model
    from q8trt.training.distillation import Distillation


@dataclass(frozen=True)
class Inputs:
    """The input of every stage: the tokenizer, the tokenized rows, and their record for run.json."""

    tokenizer: Any
    train: Features
    dev: dict[str, Features]
    data: DataRecord


def load_inputs(config: FinetuneConfig) -> Inputs:
    """Read and tokenize the rows of `config`, and check that the model and the teacher fit them.

    Raises:
        DataError: the data are missing or malformed, or do not fit the model's tables.
        CheckpointError: the model has no usable configuration, head or tokenizer, or the teacher cannot be used.
        ConfigError: the library of quantizers is not installed, training rows have no labels, or the teacher does not fit.
    """
    if config.precision.is_quantized:
        library(config.quantizer)
    name = config.from_fp32 or config.model_name_or_path
    model = load_config(name)
    if config.from_fp32:
        _check_head(model, config)
    tokenizer = load_tokenizer(name)
    train, dev = load_train(config.data), load_dev(config.data)
    data = record_splits(train, dev)
    if config.teacher_model_name_or_path and config.distillation and last_stage(config) == "int8":
        check_teacher(config.teacher_model_name_or_path, config, tokenizer)
    length = config.data.max_seq_length
    inputs = Inputs(
        tokenizer,
        tokenize(train, tokenizer, length),
        {split: tokenize(rows, tokenizer, length) for split, rows in dev.items()},
        data,
    )
    trains_int8 = last_stage(config) == "int8" and config.training.label_loss_weight > 0
    if inputs.train.labels is None and (trains_int8 or not config.from_fp32):
        raise ConfigError("--train_file is missing: training needs rows with labels")
    for rows in (inputs.train, *inputs.dev.values()):
        check_rows(rows, model)
    return inputs


def _check_head(model: Any, config: FinetuneConfig) -> None:
    """Check that the head of the checkpoint `config.from_fp32` fits the task."""
    name, task = str(config.from_fp32), config.data.resolved_task
    if task.embedding:
        return
    order = check_head(model, task, name)
    adopt_activation(model, resolve_model(name))
    if (
        activation_of(model, task, name) != "identity"
        and last_stage(config) == "int8"
        and config.training.label_loss_weight
    ):
        raise ConfigError(
            f"{name} applies a sigmoid to its logit (activation_fn in its configuration), but QAT would train the logit as "
            "the score; leave QAT out: --no_qat"
        )
    if order is not None and config.from_pytorch_quantization:
        names = [str(model.id2label[number]) for number in range(task.num_labels)]
        raise ConfigError(
            f"{name} has the labels in the order {', '.join(names)}, {task.name} in the order {', '.join(task.labels)}, and "
            "--from_pytorch_quantization does not reorder the head; give both in one order (id2label in config.json)"
        )


def check_teacher(name: str, config: FinetuneConfig, tokenizer: Any) -> None:
    """Check that the teacher `name` can be loaded, reads the token ids of `tokenizer`, and answers the task.

    Raises:
        CheckpointError: the teacher is not a fine-tuned, BERT-like, floating-point checkpoint for the task.
        ConfigError: the teacher has another vocabulary, or too few positions.
    """
    option, task = f"--teacher_model_name_or_path {name}", config.data.resolved_task
    theirs = load_tokenizer(name)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{option} has another vocabulary than the model ({len(theirs)} tokens, the model's has {len(tokenizer)}), "
            "and a teacher reads the model's token ids; give a teacher of the same vocabulary"
        )
    if theirs.model_max_length < config.data.max_seq_length:
        raise ConfigError(
            f"{option} reads at most {theirs.model_max_length} tokens; lower --max_seq_length from "
            f"{config.data.max_seq_length} to that"
        )
    checkpoints.load_finetuned(name, task, config.allow_pickle)  # only a check; QAT loads it again


def evaluate_model(
    model: Model,
    config: FinetuneConfig,
    inputs: Inputs,
    precision: Precision,
    references: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Evaluation]:
    """Return development split -> scores of the torch model.

    `references` are the FP32 model's outputs on each split, for rows without labels; None if `model` is the FP32 model.
    """
    from q8trt.quantization.insertion import weights_quantized_once

    task, scores = config.data.resolved_task, {}
    activation = activation_of(model.config, task, "the model")
    runner = TorchRunner(model, precision)
    for split, rows in inputs.dev.items():
        title = rows.titled(f"Evaluating {precision} on {split}")
        with weights_quantized_once(model), progress(title, len(rows)) as advance:
            batch = config.training.per_device_eval_batch_size
            length = config.data.max_seq_length
            scores[split] = evaluate(
                runner, rows, inputs.tokenizer.pad_token_id, length, batch, advance, activation=activation,
                reference=references[split] if references else None,
            )  # fmt: skip
    return scores


def _epochs(count: float) -> str:
    return f"{count:g} epoch{'' if count == 1 else 's'}"


class Finetuning:
    """The execution of a run. It runs each stage that run.json does not list as finished."""

    def __init__(
        self, config: FinetuneConfig, run: Run, inputs: Inputs, say: Callable[[str], object], resume: bool = False
    ) -> None:
        self.config = config
        self._say = say
        self.run = run
        self.inputs = inputs
        self.resume = resume
        self.task = config.data.resolved_task
        self._finished: frozenset[str] = frozenset()
        #: The current work, as printed.
        self._work = "loading"
        #: Development split -> outputs of the FP32 model, if the rows have no labels.
        self._references: dict[str, np.ndarray] | None = None

    def execute(self) -> None:
        """Run the unfinished stages.

        Raises:
            Q8TRTError: bad input, or Ctrl-C or SIGTERM after the state was saved (InterruptedRunError).
        """
        from accelerate import PartialState

        # Under torchrun, all processes must see the same finished stages, so they read run.json before a stage finishes.
        self._finished = frozenset(stage for stage in STAGES if self.run.stage(stage))
        PartialState().wait_for_everyone()
        last = last_stage(self.config)
        trained = {"fp32": not self.config.from_fp32, "int8": last == "int8"}
        left = {stage for stage, trains in trained.items() if trains} - self._finished
        self.config.training.check_schedule(len(self.inputs.train), left)
        try:
            model = self._fp32()
            if last != "fp32":
                quantized, recipe = self._ptq(model)
                if last == "int8":
                    self._int8(quantized, recipe, model)
        except KeyboardInterrupt as interrupt:
            raise InterruptedRunError(
                f"stopped during {self._work}; continue with: {self.run.resume_command}"
            ) from interrupt

    def _announce(self, stage: StageName, work: str) -> None:
        """Print the stage that starts and the number of stages."""
        self._work = work
        planned = STAGES[: STAGES.index(last_stage(self.config)) + 1]
        self._say(f"stage {planned.index(stage) + 1} of {len(planned)}: {stage.upper()}, {work}")

    def _finish(self, stage: StageName, model: Model, recipe: Recipe | None, details: dict[str, Any]) -> None:
        """Save the stage's checkpoint, score it, and record the stage as finished, in this order."""
        from accelerate import PartialState

        if is_main_process():
            checkpoints.save_checkpoint(self.run.path / stage, model, self.inputs.tokenizer, recipe)
            precision = Precision.FP32 if recipe is None else Precision.INT8
            try:
                results = evaluate_model(model, self.config, self.inputs, precision, self._references)
            except DataError as error:
                source = self.config.from_fp32 if stage == "fp32" else None
                raise DataError(f"{source or f'the model of stage {stage}'}: {error}; check the weights") from None
            scores = {split: result.metrics for split, result in results.items()}
            self.run.finish_stage(stage, {"checkpoint": stage, "scores": scores, **details})
        PartialState().wait_for_everyone()

    def _train(self, stage: str, model: Model, epochs: float, rate: float, **settings: Any) -> dict[str, Any]:
        from q8trt.training.stage import TrainingStage, train_stage

        folder, length = self.run.path, self.config.data.max_seq_length
        dev = next(iter(self.inputs.dev.values()))
        plan = TrainingStage(stage, model, self.inputs.train, dev, epochs, rate, folder, length, **settings)
        use_cache = getattr(model.config, "use_cache", None)
        details = asdict(train_stage(plan, self.task, self.inputs.tokenizer, self.config.training, self.resume))
        if use_cache is not None:  # the Trainer sets it to False; a run resumed after its last step has no Trainer
            model.config.use_cache = use_cache
        return details

    def _fp32(self) -> Model:
        from transformers import set_seed

        config, options = self.config, self.config.training
        if "fp32" not in self._finished:
            self._announce(
                "fp32", "loading" if config.from_fp32 else f"{_epochs(options.num_train_epochs)} of fine-tuning"
            )
            if config.from_fp32:
                model = checkpoints.load_finetuned(config.from_fp32, self.task, config.allow_pickle)
                details: dict[str, Any] = {"source": short_name(config.from_fp32)}
            else:
                set_seed(options.seed)
                model = checkpoints.load_pretrained(
                    config.model_name_or_path, self.task, dropout=options.dropout, allow_pickle=config.allow_pickle
                )
                details = self._train("fp32", model, options.num_train_epochs, options.learning_rate)
            self._finish("fp32", model, None, details)
        # Load it even if it was just trained, because the Trainer leaves wrappers on the model.
        model = checkpoints.load_finetuned(self.run.path / "fp32", self.task)
        if not self.task.has_labels and is_main_process() and last_stage(self.config) not in {"fp32", *self._finished}:
            results = evaluate_model(model, self.config, self.inputs, Precision.FP32)
            self._references = {split: result.logits for split, result in results.items()}
        return model

    def _ptq(self, model: Model) -> tuple[Model, Recipe]:
        if "ptq" not in self._finished:
            self._announce("ptq", "calibration")
            started = time.perf_counter()
            quantized, choice = quantize(model, self.config, self.inputs)
            details = {
                "calibration_samples": self.config.calibration_samples,
                "calibration_seconds": round(time.perf_counter() - started, 3),
                "percentiles": dict(choice.calibration.percentiles),
                "trials": [asdict(trial) for trial in choice.trials],
                "in_float": asdict(choice.in_float) if choice.in_float else None,
            }
            self._finish("ptq", quantized, choice.recipe, details)
        return checkpoints.load_quantized(self.run.path / "ptq", library(self.config.quantizer))

    def _int8(self, quantized: Model, recipe: Recipe, fp32: Model) -> None:
        if "int8" in self._finished:
            return
        from transformers import set_seed

        from q8trt.training.stage import Quantization

        options = self.config.training
        self._announce("int8", f"{_epochs(options.qat_epochs)} of quantization-aware training")
        # Clipped ranges help training on labels. Without labels, QAT starts from the ranges that drifted least.
        start = recipe.qat_start if options.label_loss_weight else None
        config = replace(self.config, recipe=start or recipe)
        if start is not None:
            quantized, _ = quantize(fp32, config, self.inputs)
        set_seed(options.seed)
        if options.qat_dropout is not None:
            set_dropout(quantized, options.qat_dropout)
        ranges = Quantization(config.recipe, lambda: measure_ranges(quantized, config, self.inputs))
        details = self._train(
            "int8",
            quantized,
            options.qat_epochs,
            options.qat_learning_rate,
            distillation=self._distillation(fp32) if config.distillation else None,
            quantization=ranges,
        )
        self._finish("int8", quantized, config.recipe, {**details, "distillation": config.distillation})

    def _distillation(self, fp32: Model) -> Distillation:
        from q8trt.training.distillation import Distillation

        config, options = self.config, self.config.training
        teacher, tokenizer = fp32, self.inputs.tokenizer
        if name := config.teacher_model_name_or_path:
            teacher = checkpoints.load_finetuned(name, self.task, config.allow_pickle)
            tokenizer = load_tokenizer(name)
        return Distillation(
            teacher,
            label_weight=options.label_loss_weight,
            logit_weight=options.distillation_weight,
            temperature=options.distillation_temperature,
            hidden_weight=options.hidden_loss_weight,
            attention_weight=options.attention_loss_weight,
            token_types="token_type_ids" in model_inputs(tokenizer),
        )
