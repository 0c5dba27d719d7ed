"""The effect on a model's logits when single quantizers are switched on."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from q8trt.errors import DataError
from q8trt.models.activation import activation_of
from q8trt.quantization.architectures import architecture_of
from q8trt.quantization.insertion import model_quantizers, set_quantization
from q8trt.quantization.precision import Precision
from q8trt.quantization.sites import Site, encoder_sites
from q8trt.runs.config import FinetuneConfig
from q8trt.runtime.torch_runner import TorchRunner
from q8trt.tasks.data import Features, bucketed_batches, restore_order, restore_tokens
from q8trt.tasks.glue import Task
from q8trt.tasks.metrics import direction
from q8trt.tasks.scoring import score
from q8trt.training.finetuning import Inputs


@dataclass(frozen=True)
class Cost:
    """The effect of quantizing some sites on a model's answers to some rows.

    Attributes:
        logits_mse: mean squared difference of the logits from the float model's.
        logits_max_abs: largest absolute difference of a logit.
        drop_x100: the task's main metric of the float model minus that of the quantized one, x100; negative for a gain.
            Without labels, the answers of the float model are the reference.
    """

    logits_mse: float
    logits_max_abs: float
    drop_x100: float


class _Known(nn.Module):
    """A stand-in for several layers with a known output; `layer` is the first of them."""

    output: Any = None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)  # ModernBERT chooses a layer's mask by it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the known output for any input."""
        return self.output


class Probe:
    """A calibrated model, some rows, and the effect of quantizing any of its sites on the answers.

    A site of layer k does not affect the layers below k, so their float output is computed once and stored: rows x tokens x
    hidden size x 4 bytes. Calls are fastest in the order of `start`. The probe owns the model, whose quantizers stay as the last
    call switched them.

    Args:
        model: quantized and calibrated model with a head.
        rows: rows, with labels if the task has labels; they are sorted by length and padded to a multiple of 8.
        task: task of the rows, which has the metric.
        pad_token_id: padding token id of the tokenizer.
        max_length: maximum tokens of a row.
        batch_size: maximum rows of a batch.

    Attributes:
        sites: the quantized sites, in the order of computation.
        rows: the rows, in their order.
        float_logits: float32 (rows, num_labels), with all quantizers off; (tokens, outputs) of a head for tokens.
        float_score: the task's main metric of `float_logits`, a fraction.

    Raises:
        DataError: no rows, or rows without labels for a task with labels.
    """

    def __init__(
        self, model: Any, rows: Features, task: Task, pad_token_id: int, max_length: int, batch_size: int = 32
    ) -> None:
        if not len(rows) or (rows.labels is None and task.has_labels):
            raise DataError(f"{rows.split} has no labeled rows to score on; give development data with labels")
        self._quantizers = model_quantizers(model)
        sites = encoder_sites(model)
        self.sites = tuple(site for site in sites if site.key in self._quantizers)
        self._starts = _starts(sites)
        self.rows, self._task = rows, task
        self._activation = activation_of(model.config, task, "the model")
        lengths = range(8, max_length, 8)  # torch needs no buckets, so batches have fewer tokens than on an engine
        self._batches = list(bucketed_batches(rows, batch_size, pad_token_id, lengths, max_length))
        self._layers: Any = model.base_model.get_submodule(architecture_of(model.config).layers)
        self._known, self._below, self._hidden = _Known(self._layers[0]), 0, list[Any]()
        set_quantization(model, True)  # with every quantizer off, attention with quantizers equals the float one
        self._runner = TorchRunner(model, Precision.INT8)
        self.float_logits = self.logits(())
        self.float_score = self._score(self.float_logits)

    def start(self, on: Collection[str]) -> int:
        """Return the number of first layers that the sites `on` do not affect."""
        return min((self._starts[key] for key in on), default=0)

    def logits(self, on: Collection[str], on_progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the logits with only the sites `on` quantized.

        Args:
            on: keys of sites.
            on_progress: function that is called with the number of rows after each batch.

        Returns:
            float32 (rows, num_labels), or (tokens, outputs) of a head for tokens, in the order of the rows.
        """
        below = self.start(on)
        if below not in (0, self._below):
            self._remember(below)
        self._switch(on)
        return self._run(below, on_progress)

    def cost(self, on: Collection[str], on_progress: Callable[[int], None] | None = None) -> Cost:
        """Return the effect of quantizing only the sites `on`. The arguments are those of `logits`.

        Raises:
            DataError: a logit is not finite.
        """
        logits = self.logits(on, on_progress)
        drop = 100 * direction(self._task.main_metric) * (self.float_score - self._score(logits))
        difference = logits.astype(np.float64) - self.float_logits
        return Cost(float(np.mean(difference**2)), float(np.abs(difference).max()), drop)

    def _score(self, logits: np.ndarray) -> float:
        return score(self.rows, logits, self.float_logits, self._activation)[self._task.main_metric]

    def _switch(self, on: Collection[str]) -> None:
        for key, quantizer in self._quantizers.items():
            if key in on:
                quantizer.enable()
            else:
                quantizer.disable()

    def _remember(self, below: int) -> None:
        """Store the float output of layer `below` - 1 for each batch, instead of an earlier layer's."""
        self._switch(())
        outputs: list[Any] = []
        latest: list[Any] = [None]  # if all layers share parameters, the hook of this layer is called for each of them
        hook = self._layers[below - 1].register_forward_hook(lambda _, args, output: latest.__setitem__(0, output))
        try:
            self._run(self._below if self._below < below else 0, lambda rows: outputs.append(latest[0]))
        finally:
            hook.remove()
        self._below, self._hidden = below, outputs

    def _run(self, below: int, on_progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the logits of all rows; stored outputs replace the first `below` layers. Quantizers are not switched."""
        layers = list(self._layers)
        chunks = []
        try:
            for number in range(below):
                self._layers[number] = self._known
            for index, batch in enumerate(self._batches):
                self._known.output = self._hidden[index] if below else None
                chunks.append(self._runner.infer(batch.arrays))
                if on_progress:
                    on_progress(len(batch.indices))
        finally:
            for number in range(below):
                self._layers[number] = layers[number]
        order = [batch.indices for batch in self._batches]
        if self._task.per_token:
            return restore_tokens(chunks, [batch.arrays["attention_mask"] for batch in self._batches], order)
        return restore_order(chunks, order)


def _starts(sites: Sequence[Site]) -> dict[str, int]:
    """Return site key -> number of layers before the site. `sites` are all sites of a model in the order of computation."""
    starts, passed = {}, 0
    for site in sites:
        starts[site.key] = passed if site.layer is None else site.layer
        passed = passed if site.layer is None else site.layer + 1
    return starts


def choose_rows(rows: Features, count: int, seed: int) -> Features:
    """Return `count` random rows in their order, or all rows if there are fewer.

    For embeddings with labels, neighboring rows form a pair and stay together.
    """
    width = 2 if rows.task.embedding and rows.task.has_labels else 1
    groups = len(rows) // width
    chosen = sorted(random.Random(seed).sample(range(groups), min(max(count // width, 1), groups)))
    return rows.select([width * group + place for group in chosen for place in range(width)])


def probe_of(quantized: nn.Module, rows: Features, config: FinetuneConfig, inputs: Inputs) -> Probe:
    """Return the probe of `quantized` on `rows`, padded and batched as in the run of `config`.

    Raises:
        DataError: there are no rows, or rows lack the labels of their task.
    """
    batch, length = config.training.per_device_eval_batch_size, config.data.max_seq_length
    return Probe(quantized, rows, config.data.resolved_task, inputs.tokenizer.pad_token_id, length, batch)
