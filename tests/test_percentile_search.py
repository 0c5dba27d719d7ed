"""The percentile search, against the same search written plainly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import layer_count

from q8trt.quantization.calibration import calibrate, searched_sites
from q8trt.quantization.calibrators import SEARCH_START
from q8trt.quantization.insertion import insert_quantizers, model_quantizers, set_quantization
from q8trt.quantization.percentile_search import CANDIDATES, ROWS, RowSample
from q8trt.quantization.recipe import Recipe
from q8trt.quantization.sites import encoder_sites

PLACES = (
    "embeddings",
    "qkv_input",
    "query.weight",
    "bmm_q",
    "softmax_out",
    "bmm_v",
    "ffn_input",
    "ffn_residual",
    "gelu_out",
)
SITES: dict[str, Any] = {name: {} for name in (*PLACES, "pooler")}


def recipe_of(percentile: float | None = None, **sites: Any) -> Recipe:
    """`SITES`, searched for, or all at one percentile."""
    activations = (
        {"calibrator": "search"} if percentile is None else {"calibrator": "percentile", "percentile": percentile}
    )
    data = {"name": "mine", "activations": activations, "weights": {"axis": 0}, "sites": SITES | sites}
    return Recipe.from_dict(data)


@pytest.fixture
def batches(tiny_batch: Callable[..., Any], architecture: str) -> list[dict[str, torch.Tensor]]:
    return [tiny_batch(architecture, (8, 17), seed) for seed in range(4)]


@torch.no_grad()
def logits(model: Any, batches: list[Any]) -> torch.Tensor:
    return torch.cat([model(**batch).logits for batch in batches])


def plain_search(float_model: Any, batches: list[Any]) -> tuple[dict[str, float], dict[str, float], float]:
    """Percentiles, amax, and the loss: one site after the other, each candidate through the whole model."""
    ranges = {}
    for percentile in CANDIDATES:
        model = copy.deepcopy(float_model)
        insert_quantizers(model, recipe_of(percentile))
        ranges[percentile] = calibrate(model, recipe_of(percentile), batches).amax
    model = copy.deepcopy(float_model)
    insert_quantizers(model, recipe_of(SEARCH_START))
    calibrate(model, recipe_of(SEARCH_START), batches)
    reference, quantizers, chosen = logits(float_model, batches), model_quantizers(model), {}
    for site in searched_sites(model, recipe_of()):
        losses = {}
        for percentile in (SEARCH_START, *CANDIDATES):
            quantizers[site.key].amax = torch.tensor(ranges[percentile][site.key])
            losses[percentile] = float((logits(model, batches) - reference).double().square().mean())
        chosen[site.key] = min(losses, key=losses.__getitem__)
        quantizers[site.key].amax = torch.tensor(ranges[chosen[site.key]][site.key])
    amax = {key: float(quantizer.amax.max()) for key, quantizer in quantizers.items()}
    return chosen, amax, min(losses.values())


def test_as_a_plain_search(tiny_model: Callable[..., Any], batches: list[Any], architecture: str) -> None:
    """The layers before a site are not computed again, and rows come in other batches: the choice is the same."""
    float_model = tiny_model(architecture, num_labels=3)
    model, seen = copy.deepcopy(float_model), []
    insert_quantizers(model, recipe_of())
    found = calibrate(model, recipe_of(), batches, on_search=seen.append)
    chosen, amax, loss = plain_search(float_model, batches)
    assert found.percentiles == chosen
    assert list(found.percentiles) == [site.key for site in searched_sites(model, recipe_of())]
    assert len(chosen) == 7 * layer_count(architecture) + 1
    assert len(set(chosen.values())) > 1  # not all at one: there was something to choose
    assert seen == [1] * len(chosen)
    assert found.amax == amax
    assert float((logits(model, batches) - logits(float_model, batches)).double().square().mean()) == pytest.approx(
        loss, rel=1e-3
    )


def test_it_beats_each_single_percentile(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    batches = [tiny_batch("bert", (8, 17), seed) for seed in range(4)]
    float_model = tiny_model("bert")
    reference, losses = logits(float_model, batches), {}
    for percentile in (None, *CANDIDATES):
        model = copy.deepcopy(float_model)
        insert_quantizers(model, recipe_of(percentile))
        calibrate(model, recipe_of(percentile), batches)
        losses[percentile] = float((logits(model, batches) - reference).square().mean())
    assert losses[None] < losses[SEARCH_START]  # never worse than where it starts; better here


def test_what_comes_before_a_layer_is_computed_once(
    tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]
) -> None:
    sites = {name: {} for name in ("qkv_input", "ffn_input", "gelu_out")}
    recipe = Recipe.from_dict({"name": "mine", "activations": {"calibrator": "search"}, "sites": sites})
    model, calls = tiny_model(), {"embeddings": 0, "layer 0": 0, "layer 1": 0}
    insert_quantizers(model, recipe)
    first, second = (layer.output for layer in model.bert.encoder.layer)
    places = {"embeddings": model.bert.embeddings.word_embeddings, "layer 0": first, "layer 1": second}
    for name, module in places.items():
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    calibrate(model, recipe, [tiny_batch("bert", (8, 17), 0)])
    # Calibration, the reference, where the search starts, and what reaches the first layer.
    assert calls["embeddings"] == 4
    # These, what reaches the second layer, and up to three candidates of three sites.
    assert 5 + 3 <= calls["layer 0"] <= 5 + 9
    assert 3 <= calls["layer 1"] - calls["layer 0"] <= 9


def test_nothing_is_left_behind(tiny_model: Callable[..., Any], batches: list[Any], architecture: str) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    model = tiny_model(architecture)
    insert_quantizers(model, recipe_of())
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, recipe_of(), batches, on_search=interrupt)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert all(len(module._forward_hooks) == 0 for module in model.modules())
    set_quantization(model, False)
    assert torch.equal(logits(model, batches), logits(tiny_model(architecture), batches))


def test_searched_sites(tiny_model: Callable[..., Any]) -> None:
    recipe = recipe_of(**{"ffn_input": {"calibrator": "max"}, "layer.1.ffn_input": {"calibrator": "search"}})
    keys = [site.key for site in searched_sites(tiny_model(), recipe)]
    assert "layer.1.ffn_input" in keys
    assert not {"layer.0.ffn_input", "layer.0.softmax_out", "layer.0.query.weight", "layer.0.context"} & set(keys)
    assert keys == [site.key for site in encoder_sites(tiny_model()) if site.key in keys]
    assert searched_sites(tiny_model(), recipe_of(99.9)) == ()


def rows_of(count: int, width: int = 5) -> dict[str, torch.Tensor]:
    mask = (torch.arange(width) < 2 + torch.arange(count)[:, None] % (width - 1)).long()
    ids = torch.arange(1000, 1000 + count)[:, None] * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask}


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 500, 512, 5000])
def test_rows_are_spread_evenly(count: int) -> None:
    sample, rows = RowSample(), rows_of(count)
    for start in range(0, count, 7):
        sample.add({name: tensor[start : start + 7] for name, tensor in rows.items()})
    kept = [int(row["input_ids"][0]) - 1000 for row in sample.rows]
    assert min(count, ROWS // 2) <= len(kept) <= ROWS
    assert set(torch.tensor(kept).diff().tolist()) <= {max(1, kept[-1] // max(len(kept) - 1, 1))}
    assert kept[0] == 0
    assert count - kept[-1] <= max(1, kept[-1] // max(len(kept) - 1, 1))


def test_batches_of_rows() -> None:
    """Without the padding they came in, in the order of their lengths; the model's own padding where it is needed."""
    sample = RowSample(limit=40)
    sample.add(rows_of(40, width=30))
    batches = sample.batches(pad_token_id=1)
    assert [batch["input_ids"].shape for batch in batches] == [(32, 22), (8, 30)]
    for batch in batches:
        lengths = batch["attention_mask"].sum(1)
        assert lengths.tolist() == sorted(lengths.tolist())
        assert ((batch["input_ids"] == 1) == (batch["attention_mask"] == 0)).all()
        assert torch.equal(batch["token_type_ids"], batch["attention_mask"])
    assert sorted(int(i) for batch in batches for i in batch["input_ids"][:, 0]) == list(range(1000, 1040))


def test_padding_on_the_left_and_no_mask() -> None:
    sample = RowSample()
    sample.add({"input_ids": torch.tensor([[0, 0, 7, 8]]), "attention_mask": torch.tensor([[0, 0, 1, 1]])})
    sample.add({"input_ids": torch.tensor([[5, 0, 6]])})
    assert [row["input_ids"].tolist() for row in sample.rows] == [[7, 8], [5, 0, 6]]
    assert sample.batches(0)[0]["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_two_searches_are_equal(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    found = []
    for _ in range(2):
        model = tiny_model()
        insert_quantizers(model, recipe_of())
        found.append(calibrate(model, recipe_of(), [tiny_batch("bert", (8, 17), seed) for seed in range(3)]))
    found.append(calibrate(model, recipe_of(), [tiny_batch("bert", (8, 17), seed) for seed in range(3)]))
    assert found[0] == found[1] == found[2]
