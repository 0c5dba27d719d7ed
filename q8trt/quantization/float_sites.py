"""The choice of operations that stay in floating point, because no range makes their INT8 error acceptable.

An operation runs in INT8 only if all of its sites are quantized, so these sites are switched off together. Operations are
ranked by the drift of the answers with only that operation in INT8. They are switched off one after another, the most harmful
first, until the drift is within the recipe's bound. Then each one is tried in INT8 again, and stays there if the drift hardly
changes. Sometimes the drift falls only after several are off, because V and the context share their outliers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from q8trt.quantization.attention import BMM_SITES
from q8trt.quantization.choice import Choice
from q8trt.quantization.drift import all_answers, drift
from q8trt.quantization.insertion import model_quantizers, set_quantization, weights_quantized_once
from q8trt.quantization.observation import Batch
from q8trt.quantization.recipe import FloatSites
from q8trt.quantization.sites import encoder_sites
from q8trt.quantization.trial import InFloat

#: The sites that each operation reads. The two products of an attention are one operation, because TensorRT fuses them.
OPERATIONS = (
    ("qkv_input", "query.weight", "key.weight", "value.weight"),
    BMM_SITES,
    ("context", "attention_output.weight"),
    ("attention_residual.branch", "attention_residual.skip"),
    ("ffn_input", "ffn_intermediate.weight"),
    ("gelu_out", "ffn_output.weight"),
    ("ffn_residual.branch", "ffn_residual.skip"),
    ("pooler.input", "pooler.weight"),
    ("classifier.input", "classifier.weight"),
)
#: Operations are ranked on every n-th batch of the held-out rows.
RANKING_STEP = 4
#: An operation leaves INT8 only if the drift falls to this share or less.
GAIN = 0.9

_Operation = tuple[str, ...]


def operations(model: Any) -> tuple[_Operation, ...]:
    """Return the keys of the quantized sites of each operation of `model`, in the order of computation."""
    quantizers = model_quantizers(model)
    groups: dict[tuple[int | None, int], list[str]] = {}
    for site in encoder_sites(model):
        number = next((index for index, names in enumerate(OPERATIONS) if site.name in names), None)
        if number is not None and site.key in quantizers:
            groups.setdefault((site.layer, number), []).append(site.key)
    return tuple(tuple(keys) for keys in groups.values())


def leave_in_float(
    model: Any,
    choice: Choice,
    bound: FloatSites,
    batches: Sequence[Batch],
    on_progress: Callable[[int], None] | None = None,
) -> Choice:
    """Return `choice` with up to `bound.max` operations in floating point, which lower its drift to `bound.drift` if they can.

    Args:
        model: calibrated by `choice`. Afterwards all of its quantizers are on, including those of the operations.
        choice: a measured choice; returned unchanged if its drift is within the bound, or hardly falls.
        bound: the limits of the recipe.
        batches: held-out rows, keyword arguments of the model.
        on_progress: called with 1 after each operation that is measured.
    """
    current = min(trial.drift for trial in choice.trials)
    if current <= bound.drift:
        return choice
    quantizers, few = model_quantizers(model), batches[::RANKING_STEP]
    set_quantization(model, True)  # attention must use its quantizers, although some of them are off

    def measure(on: Collection[str], rows: Sequence[Batch], reference: Any) -> float:
        for key, quantizer in quantizers.items():
            (quantizer.enable if key in on else quantizer.disable)()
        with weights_quantized_once(model):
            value = drift(all_answers(model, rows), reference)
        if on_progress:
            on_progress(1)
        return value

    for quantizer in quantizers.values():
        quantizer.disable()
    reference, reference_of_few = all_answers(model, batches), all_answers(model, few)
    alone = {each: measure(each, few, reference_of_few) for each in operations(model)}

    def without(off: Sequence[_Operation]) -> float:
        return measure(set(quantizers) - {key for operation in off for key in operation}, batches, reference)

    off: list[_Operation] = []
    value = current
    for operation in sorted(alone, key=lambda each: -alone[each])[: bound.max]:
        off.append(operation)
        value = without(off)
        if value <= bound.drift:
            break
    for operation in reversed(off[:]):
        rest = [each for each in off if each != operation]
        with_it = without(rest) if rest else current
        if with_it <= max(bound.drift, value / GAIN):
            off, value = rest, with_it
    set_quantization(model, True)
    if not off or value > GAIN * current:
        return choice
    left = InFloat(tuple(off), value)
    sites = [site for site in encoder_sites(model) if site.key in left.sites]
    return replace(choice, recipe=choice.recipe.without(sites), in_float=left)


def steps(model: Any, bound: FloatSites) -> int:
    """Return the maximum number of measurements of `leave_in_float`."""
    return len(operations(model)) + 2 * bound.max
