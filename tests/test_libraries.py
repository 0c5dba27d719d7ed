"""The seam to the libraries that quantizers come from."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from q8trt import files
from q8trt.errors import CheckpointError, ConfigError
from q8trt.models.checkpoints import QUANTIZATION_FILE, load_quantized, save_checkpoint
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers
from q8trt.quantization.libraries import MODELOPT, library, made_by
from q8trt.quantization.recipe import QuantizerSpec, load_recipe


class PlainQuantizer(torch.nn.Module):
    """A quantizer without a pre_quant_scale, as pytorch-quantization's."""

    _disabled = False
    amax: Any = None


class PlainLibrary:
    name = "plain"

    def version(self) -> str:
        return "1"

    def new_quantizer(self, spec: QuantizerSpec) -> Any:
        return PlainQuantizer()

    def new_calibrator(self, spec: QuantizerSpec) -> Any:
        raise NotImplementedError


def test_names() -> None:
    assert library() is library("modelopt") is MODELOPT
    assert MODELOPT.version() == version("nvidia-modelopt")
    with pytest.raises(ConfigError, match=r"^unknown --quantizer 'model-opt' \(did you mean 'modelopt'\?\); known: "):
        library("model-opt")
    assert made_by(MODELOPT.new_quantizer(QuantizerSpec())) is MODELOPT


def test_a_checkpoint_keeps_its_smoothing_and_names_its_library(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    model, recipe, batch = tiny_model(), load_recipe("full"), tiny_batch(seed=5)
    insert_quantizers(model, recipe)
    calibrate(model, recipe, [tiny_batch(seed=seed) for seed in range(3)])
    save_checkpoint(tmp_path / "q", model, tiny_tokenizer, recipe)
    recorded = files.read_json(tmp_path / "q" / QUANTIZATION_FILE)["quantizer"]
    assert recorded == {"library": "modelopt", "version": version("nvidia-modelopt")}
    loaded, read = load_quantized(tmp_path / "q")
    assert read == recipe
    smoothed = [name for name in loaded.state_dict() if name.endswith("_pre_quant_scale")]
    assert len(smoothed) == 2 * (3 + 4)  # inputs of three linears and four inputs of residual Adds in each layer
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    with pytest.raises(CheckpointError, match=r"layer\.0\.qkv_input is smoothed .*; use --quantizer modelopt$"):
        load_quantized(tmp_path / "q", PlainLibrary())
