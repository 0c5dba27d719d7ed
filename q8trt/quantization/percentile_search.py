"""The search for the percentile of each site that changes the model's logits least.

The ranges come from the histograms of calibration. The logits are computed on a limited number of calibration rows, stored as
token ids. Sites are searched in the order of computation: earlier ones have their chosen percentile, later ones
`SEARCH_START`. A candidate does not affect earlier layers, so these are computed only once for all sites of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from q8trt.quantization.architectures import architecture_of
from q8trt.quantization.calibrators import SEARCH_START
from q8trt.quantization.histogram import Histogram, percentile_amax
from q8trt.quantization.insertion import answering, model_quantizers, set_quantization, weights_quantized_once
from q8trt.quantization.observation import Batch, answers
from q8trt.quantization.sites import encoder_sites

#: The candidates of a site; 100 is the largest magnitude.
CANDIDATES = (99.9, 99.99, 99.999, 100.0)
#: Rows that the search runs on.
ROWS = 64
_BATCH_SIZE = 32


class RowSample:
    """A sample of at most `limit` rows, spread evenly over all rows; at least half of `limit` if there are enough rows.

    At first every row is stored. Each time there are too many, every second one is dropped, and later rows are added half as
    often. So the sample depends only on the rows.
    """

    def __init__(self, limit: int = ROWS) -> None:
        self.limit = limit
        self.rows: list[dict[str, torch.Tensor]] = []
        self._stride = 1
        self._seen = 0

    def add(self, batch: Batch) -> None:
        """Add rows of a batch, int64 tensors (batch, sequence)."""
        batch = {"attention_mask": torch.ones_like(batch["input_ids"]), **batch}
        text = batch["attention_mask"].bool()
        for number in range(len(text)):
            if self._seen % self._stride == 0:
                self.rows.append({name: tensor[number][text[number]].cpu() for name, tensor in batch.items()})
            if len(self.rows) > self.limit:
                self.rows = self.rows[::2]
                self._stride *= 2
            self._seen += 1

    def batches(self, pad_token_id: int) -> list[dict[str, torch.Tensor]]:
        """Return the sample as batches of rows with similar lengths: int64 tensors (batch, sequence)."""
        rows = sorted(self.rows, key=lambda row: len(row["input_ids"]))
        padding = {"input_ids": pad_token_id}
        return [
            {
                name: pad_sequence([row[name] for row in some], batch_first=True, padding_value=padding.get(name, 0))
                for name in some[0]
            }
            for some in (rows[start : start + _BATCH_SIZE] for start in range(0, len(rows), _BATCH_SIZE))
        ]


class _Tail:
    """The computation of the logits of some batches, in which the layers before a chosen one are computed only once.

    Attributes:
        stages: the embeddings and the layers; the output of stage n is the input of layer n.
    """

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        architecture, encoder = architecture_of(model.config), model.base_model
        self.model, self.batches = model, batches
        self.stages = [
            encoder.get_submodule(architecture.embeddings),
            *encoder.get_submodule(architecture.layers).children(),
        ]
        self._known: list[dict[nn.Module, Any]] = [{} for _ in batches]

    def start_at(self, layer: int) -> None:
        """Store the current input of `layer` (a number from 0, or the count of layers) and start from it in later calls."""
        first, last = self.stages[0], self.stages[layer]
        for index, batch in enumerate(self.batches):
            outputs: dict[nn.Module, Any] = {}

            def note(module: nn.Module, _: Any, output: Any, outputs: dict[nn.Module, Any] = outputs) -> None:
                outputs[module] = output

            with first.register_forward_hook(note), last.register_forward_hook(note):
                self._run(index, batch)
            # Only stages whose output is stored read the outputs of the layers in between, so any value does.
            self._known[index] = {first: outputs[first], **dict.fromkeys(self.stages[1 : layer + 1], outputs[last])}

    def logits(self) -> list[torch.Tensor]:
        """Return the logits of each batch, see `answers`."""
        return [self._run(index, batch) for index, batch in enumerate(self.batches)]

    def _run(self, index: int, batch: Batch) -> torch.Tensor:
        with answering(self._known[index]):
            return answers(self.model, batch)


def _difference(logits: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    return float((torch.cat(list(logits)) - torch.cat(list(reference))).double().square().mean())


@torch.no_grad()
def search_percentiles(
    model: nn.Module,
    histograms: Mapping[str, Histogram],
    batches: Sequence[Batch],
    on_site: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Choose a percentile for each site of `histograms`, and set the amax of its quantizer.

    The criterion is the mean squared difference between the logits and those with all quantizers off. A candidate replaces the
    current percentile only if it is better.

    Args:
        model: quantized and calibrated, in evaluation mode, with the sites of `histograms` at `SEARCH_START`.
        histograms: site key -> its histogram from calibration, which is not only of zeros.
        batches: the rows on which the logits are computed, such as `RowSample.batches`.
        on_site: called with 1 after each site.

    Returns:
        site key -> percentile, in the order of computation.
    """
    device = next(model.parameters()).device
    batches = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]
    tail = _Tail(model, batches)
    set_quantization(model, False)
    reference = tail.logits()
    set_quantization(model, True)
    quantizers, sites = model_quantizers(model), encoder_sites(model)
    chosen: dict[str, float] = {}
    with weights_quantized_once(model):
        least, start = _difference(tail.logits(), reference), -1
        for site in sites:
            if site.key not in histograms:
                continue
            layer = len(tail.stages) - 1 if site.layer is None else site.layer  # pooler and head come last
            if layer != start:
                tail.start_at(layer)
                start = layer
            losses = {SEARCH_START: least}
            amax = {percentile: percentile_amax(histograms[site.key], percentile) for percentile in CANDIDATES}
            for percentile in CANDIDATES:
                if amax[percentile] not in {amax[tried] for tried in losses}:
                    quantizers[site.key].amax = torch.tensor(amax[percentile], device=device)
                    losses[percentile] = _difference(tail.logits(), reference)
            chosen[site.key] = min(losses, key=losses.__getitem__)
            least = losses[chosen[site.key]]
            quantizers[site.key].amax = torch.tensor(amax[chosen[site.key]], device=device)
            if on_site:
                on_site(1)
    return chosen
