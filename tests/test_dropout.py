"""Dropout of each architecture: whatever has one gets the option's, and its checkpoint says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CONFIGS, make_batch, make_config, make_model_of

from q8trt.models import set_dropout
from q8trt.models.checkpoints import load_pretrained
from q8trt.tasks.glue import get_task

HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")


def make(head: str, architecture: str, probability: float) -> Any:
    """A tiny model whose configuration has `probability` in every field of a dropout."""
    fields = ["cls_dropout", *(name for name in make_config(architecture).to_dict() if "dropout" in name)]
    return make_model_of(head, architecture, **dict.fromkeys(fields, probability))


def outputs(model: Any, architecture: str) -> torch.Tensor:
    return torch.cat([each.flatten() for each in model(**make_batch(architecture)).to_tuple()]).detach()


def rates(model: Any) -> dict[str, float]:
    """Module -> its dropout."""
    modules = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    numbers = {name: getattr(module, "attention_dropout", None) for name, module in model.named_modules()}
    return modules | {name: number for name, number in numbers.items() if isinstance(number, float)}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", TINY_CONFIGS)
def test_set_dropout(architecture: str, head: str) -> None:
    model = make(head, architecture, 0.5)
    expected = outputs(model, architecture)
    model.train()
    assert not torch.equal(outputs(model, architecture), outputs(model, architecture))
    set_dropout(model, 0.0)
    first, second = outputs(model, architecture), outputs(model, architecture)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-5)
    set_dropout(model, 0.3)
    assert len(rates(model)) >= 4
    assert set(rates(model).values()) == {0.3}
    assert rates(type(model)(model.config)) == rates(model)  # as the checkpoint is loaded


@pytest.mark.parametrize("architecture", TINY_CONFIGS)
def test_a_checkpoint_without_dropout_gets_it(architecture: str) -> None:
    model = make("SequenceClassification", architecture, 0.0)
    set_dropout(model, 0.3)
    assert rates(model) == rates(type(model)(model.config))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("architecture", TINY_CONFIGS)
def test_load_without_dropout(architecture: str, tmp_path: Path, tiny_batch: Callable[..., Any]) -> None:
    make("SequenceClassification", architecture, 0.5).save_pretrained(tmp_path)
    model = load_pretrained(str(tmp_path), get_task("SST-2"), dropout=0.0).train()
    assert set(rates(model).values()) == {0.0}
    batch = tiny_batch(architecture)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model = load_pretrained(str(tmp_path), get_task("SST-2"), dropout=0.25)
    assert set(rates(model).values()) == {0.25}
