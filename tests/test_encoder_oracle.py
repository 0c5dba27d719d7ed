"""A quantized encoder, written out once more in NumPy from the papers alone, gives the same logits.

BERT (arXiv 1810.04805) with a quantizer at every site of Q8BERT (arXiv 1910.06188) and of attention and residuals; each
quantizer is x_q = clip(rint(x * s), -2^(b-1), 2^(b-1) - 1) / s with s = (2^(b-1) - 1) / amax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.recipe import Recipe
from q8trt.quantization.sites import SITE_KINDS

HEADS = 2


class Oracle:
    """A BERT classifier of the state dict of a quantized one. Sites that it has met are noted in `seen`."""

    def __init__(self, model: Any, bits: int) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.amax = {key: quantizer.amax.double().numpy() for key, quantizer in model_quantizers(model).items()}
        self.bits, self.seen = bits, set[str]()

    def quantize(self, key: str, x: np.ndarray) -> np.ndarray:
        is_weight = key.endswith("weight") or key.startswith("embeddings")
        top = 2 ** ((self.bits if is_weight else 8) - 1)
        self.seen.add(key)
        # The product is rounded to float32 as the quantizer's is: at a tie the last bit decides.
        scale = ((top - 1) / self.amax[key]).astype(np.float32)
        return np.clip(np.rint((x.astype(np.float32) * scale).astype(np.float64)), -top, top - 1) / scale

    def linear(self, x: np.ndarray, module: str, site: str) -> np.ndarray:
        weight = self.quantize(site, self.state[f"{module}.weight"])
        return x @ weight.T + self.state[f"{module}.bias"]

    def norm(self, x: np.ndarray, module: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return normal * self.state[f"{module}.weight"] + self.state[f"{module}.bias"]

    def embed(self, ids: np.ndarray, types: np.ndarray) -> np.ndarray:
        tables = {
            name: self.quantize(f"embeddings.{name}", self.state[f"bert.embeddings.{name}_embeddings.weight"])
            for name in ("word", "position", "token_type")
        }
        x = tables["word"][ids] + tables["token_type"][types] + tables["position"][: ids.shape[1]]
        return self.norm(x, "bert.embeddings.LayerNorm")

    def layer(self, x: np.ndarray, mask: np.ndarray, number: int) -> np.ndarray:
        module, site = f"bert.encoder.layer.{number}", f"layer.{number}."
        attention = f"{module}.attention"
        read = self.quantize(f"{site}qkv_input", x)

        def heads(name: str) -> np.ndarray:
            y = self.linear(read, f"{attention}.self.{name}", f"{site}{name}.weight")
            return y.reshape(*y.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

        q = self.quantize(f"{site}bmm_q", heads("query") / np.sqrt(x.shape[-1] / HEADS))
        k, v = self.quantize(f"{site}bmm_k", heads("key")), self.quantize(f"{site}bmm_v", heads("value"))
        scores = np.where(mask[:, None, None, :] > 0, q @ k.transpose(0, 1, 3, 2), -1e30)
        context = self.quantize(f"{site}softmax_out", softmax(scores, axis=-1)) @ v
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        branch = self.linear(
            self.quantize(f"{site}context", context), f"{attention}.output.dense", f"{site}attention_output.weight"
        )
        x = self.norm(self.add(f"{site}attention_residual", branch, x), f"{attention}.output.LayerNorm")
        y = self.linear(
            self.quantize(f"{site}ffn_input", x), f"{module}.intermediate.dense", f"{site}ffn_intermediate.weight"
        )
        y = self.quantize(f"{site}gelu_out", y * (1 + erf(y / np.sqrt(2))) / 2)
        branch = self.linear(y, f"{module}.output.dense", f"{site}ffn_output.weight")
        return self.norm(self.add(f"{site}ffn_residual", branch, x), f"{module}.output.LayerNorm")

    def add(self, site: str, branch: np.ndarray, skip: np.ndarray) -> np.ndarray:
        return self.quantize(f"{site}.branch", branch) + self.quantize(f"{site}.skip", skip)

    def logits(self, batch: dict[str, Any]) -> np.ndarray:
        ids, mask, types = (batch[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids"))
        x = self.embed(ids, types)
        for number in range(2):
            x = self.layer(x, mask, number)
        pooled = np.tanh(self.linear(self.quantize("pooler.input", x[:, 0]), "bert.pooler.dense", "pooler.weight"))
        return self.linear(self.quantize("classifier.input", pooled), "classifier", "classifier.weight")


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("axis", [0, None])
def test_logits_are_the_oracles(
    bits: int, axis: int | None, tiny_model: Callable[..., Any], tiny_batch: Callable[..., dict[str, torch.Tensor]]
) -> None:
    model = tiny_model()
    weights = {"num_bits": bits, "axis": axis}
    recipe = Recipe.from_dict({"name": "all", "weights": weights, "sites": dict.fromkeys(SITE_KINDS)})
    quantizers = insert_quantizers(model, recipe)
    calibrate(model, recipe, [tiny_batch(seed=seed) for seed in range(3)])
    oracle, batch = Oracle(model, bits), tiny_batch("bert", (8, 9), seed=7)
    with torch.no_grad():
        logits, original = model(**batch).logits.numpy(), tiny_model()(**batch).logits.numpy()
    expected = oracle.logits(batch)
    assert oracle.seen == set(quantizers)
    difference, effect = np.abs(logits - expected).max(-1), np.abs(logits - original).max(-1)
    assert np.median(effect) > 1e-3
    # float32 against float64: in a row or two a value falls on the other side of a step, which is then worth one step.
    assert np.mean(difference < 1e-5) >= 0.5
    assert difference.max() < effect.max()


def test_rows_looked_up_while_training_are_the_quantized_tables(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., dict[str, torch.Tensor]]
) -> None:
    """The short cut of `QuantEmbedding` gives the same values to the bit, and the same gradients."""
    for axis in (0, None):
        model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        recipe = Recipe.from_dict({"name": "e", "weights": {"axis": axis}, "sites": {"embeddings": {}}})
        insert_quantizers(model, recipe)
        calibrate(model, recipe, [tiny_batch()])
        table = model.bert.embeddings.word_embeddings
        with torch.no_grad():
            table.weight_quantizer.amax = table.weight_quantizer.amax / 2  # so that some gradients are cut off
        ids, results = tiny_batch()["input_ids"], []
        for watched in (False, True):
            # A quantizer that something watches sees the whole table.
            handle = table.weight_quantizer.register_forward_hook(lambda *_: None) if watched else None
            table.train()
            table.weight.grad = None
            rows = table(ids)
            (rows * torch.arange(rows.numel()).reshape(rows.shape)).sum().backward()
            results.append((rows.detach(), table.weight.grad.clone()))
            if handle:
                handle.remove()
        assert torch.equal(results[0][0], results[1][0])
        assert torch.allclose(results[0][1], results[1][1], rtol=1e-6)
        cut = (results[0][1] == 0) & (table.weight.detach()[:] != 0)
        assert cut[ids.unique()].any()
