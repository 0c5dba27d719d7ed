"""The models that are checked: the model of a finished run, and BERT-base and BERT-large with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from q8trt.errors import ConfigError
from q8trt.gpu_check import random_models
from q8trt.gpu_check.config import CheckConfig
from q8trt.hardware.provenance import portable
from q8trt.models import checkpoints, load_tokenizer, model_inputs
from q8trt.quantization.precision import Precision
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import Run
from q8trt.runs.search import how_to_finish
from q8trt.runtime.timing.lengths import evenly_spaced
from q8trt.tasks.data import DataConfig, Features, bucketed_batches, load_dev, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The recipe with linears, attention products and residual Adds in INT8.
RECIPE = "full"
_CALIBRATION_ROWS = 32


@dataclass(frozen=True)
class Subject:
    """A model under check.

    Attributes:
        name: "minilm".
        weights: "real" or "random"; only a model with real weights is scored.
        float_model: the model in FP32, on the CPU; `quantized` is the same with calibrated quantizers.
        features: the rows whose logits are compared.
        input_names: the inputs that the tokenizer makes, in the model's order.
        pad_token_id: token id of the padding.
        vocab_size: token ids are below this number.
        recipe: name of the recipe of `quantized`.
        run: the run of the model, without machine paths; "" for random weights.
    """

    name: str
    weights: str
    float_model: PreTrainedModel
    quantized: PreTrainedModel
    features: Features
    input_names: tuple[str, ...]
    pad_token_id: int
    vocab_size: int
    recipe: str
    run: str = ""

    @property
    def title(self) -> str:
        """``"minilm (real weights)"``."""
        return f"{self.name} ({self.weights} weights)"

    def model(self, precision: Precision) -> PreTrainedModel:
        """Return the model that an engine of `precision` is exported from, and measured against."""
        return self.quantized if precision.is_quantized else self.float_model

    def batches(self, batch_size: int, count: int) -> list[dict[str, np.ndarray]]:
        """Return at most `count` batches of all lengths, input name -> int32 (batch, sequence)."""
        rows = evenly_spaced(self.features, batch_size * count)
        return batches_of(rows, self.input_names, self.pad_token_id, batch_size)


def batches_of(features: Features, names: Sequence[str], pad_token_id: int, size: int) -> list[dict[str, np.ndarray]]:
    """Return the rows in length buckets, the shortest first: input name -> int32 (batch, sequence)."""
    batches = bucketed_batches(features, size, pad_token_id)
    return [{name: batch.arrays[name].astype(np.int32) for name in names} for batch in batches]


def random_pair(name: str, recipe_name: str, batches: Sequence[Mapping[str, np.ndarray]]) -> tuple[Any, Any]:
    """Return `random_model` in FP32, and a copy that is quantized by a recipe and calibrated on `batches`.

    A batch has an integer array (batch, sequence) for each input name.
    """
    import torch

    from q8trt.quantization.calibration import calibrate
    from q8trt.quantization.insertion import insert_quantizers
    from q8trt.quantization.recipe import load_recipe

    quantized, recipe = random_models.random_model(name), load_recipe(recipe_name)
    insert_quantizers(quantized, recipe)
    calibrate(
        quantized, recipe, [{key: torch.from_numpy(array).long() for key, array in batch.items()} for batch in batches]
    )
    return random_models.random_model(name), quantized


class Models:
    """The models of a check. Each is loaded when its turn comes, so a failure does not affect the others.

    Args:
        run: returns the finished run of a model with BERT's vocabulary; called once, when the first model needs it.
        data_dir: the GLUE folder; None for the built-in sample.
        config: the models, and the number and length of rows.
    """

    def __init__(self, run: Callable[[], Run], data_dir: str | None, config: CheckConfig) -> None:
        self._run, self._data_dir, self._config = run, data_dir, config

    @property
    def makers(self) -> dict[str, Callable[[], Subject]]:
        """Model name -> function that makes it and raises the errors of `of_run` or `at_random`."""
        return {
            name: functools.partial(self.at_random if name in random_models.SIZES else self.of_run, name)
            for name in self._config.models
        }

    def of_run(self, name: str) -> Subject:
        """Return the FP32 and the best quantized checkpoint of the run as a subject.

        Raises:
            ConfigError: the run is not finished, or the built-in sample does not fit its task.
        """
        run = self._run()
        task = FinetuneConfig.from_dict(run.record.config).data.resolved_task
        fp32, int8 = finished_checkpoints(run)
        tokenizer = load_tokenizer(str(fp32))
        features = self._features(dev_data(run, self._data_dir), tokenizer)
        if self._config.max_rows is not None:
            features = evenly_spaced(features, self._config.max_rows)
        float_model = checkpoints.load_finetuned(fp32, task)
        quantized, recipe = checkpoints.load_quantized(int8)
        subject = _subject(name, "real", float_model, quantized, features, tokenizer, recipe.name)
        return replace(subject, run=portable(run.path))

    def at_random(self, name: str) -> Subject:
        """Return a model of `random_models.SIZES` with recipe "full", calibrated on development rows of STS-B or the sample."""
        tokenizer = load_tokenizer("minilm")  # BERT's own vocabulary
        data = DataConfig("STS-B", data_dir=self._data_dir, sample=self._data_dir is None)
        features = self._features(data, tokenizer)
        names, pad = model_inputs(tokenizer), tokenizer.pad_token_id
        pair = random_pair(name, RECIPE, batches_of(evenly_spaced(features, _CALIBRATION_ROWS), names, pad, 16))
        return _subject(name, "random", *pair, evenly_spaced(features, self._config.random_rows), tokenizer, RECIPE)

    def _features(self, data: DataConfig, tokenizer: Any) -> Features:
        return tokenize(next(iter(load_dev(data).values())), tokenizer, self._config.largest[1])


def _subject(
    name: str, weights: str, model: Any, quantized: Any, features: Features, tokenizer: Any, recipe: str
) -> Subject:
    names, pad = model_inputs(tokenizer), tokenizer.pad_token_id
    return Subject(name, weights, model, quantized, features, names, pad, len(tokenizer), recipe)


def finished_checkpoints(run: Run) -> tuple[Path, Path]:
    """Return the FP32 checkpoint of `run` and its best quantized one. Raises ConfigError if the run is not finished."""
    fp32, int8 = run.checkpoint("fp32"), run.best_quantized()
    if fp32 is None or int8 is None:
        missing, stages = ("FP32", ["fp32"]) if fp32 is None else ("quantized", ["int8", "ptq"])
        raise ConfigError(f"{run.path} has no finished {missing} checkpoint; {how_to_finish(run, stages)}")
    return fp32, int8


def dev_data(run: Run, data_dir: str | None) -> DataConfig:
    """Return the development set to score `run` on: that of its task in `data_dir`, or the built-in sample for None.

    Raises:
        ConfigError: `data_dir` is None and the run's task is not STS-B, the task of the built-in sample.
    """
    data = FinetuneConfig.from_dict(run.record.config).data
    if data_dir is not None:
        return replace(data, data_dir=data_dir, sample=False, train_file=None, validation_file=None)
    if data.resolved_task.name != "STS-B":
        raise ConfigError(
            f"{run.path} has the task {data.resolved_task.name}, and the built-in sample is STS-B's; give --data_dir"
        )
    return DataConfig("STS-B", sample=True)
