"""`--quantizer pytorch-quantization`: that library's own quantizers and calibrators. Skipped where it is absent.

To run: put tools/pytorch-quantization of https://github.com/NVIDIA/TensorRT on PYTHONPATH, or install it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_batch, make_model, make_tokenizer

from q8trt.errors import ConfigError, QuantizationError
from q8trt.quantization import pytorch_quantization_library as library_module
from q8trt.quantization.calibration import calibrate
from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.libraries import MODELOPT, library
from q8trt.quantization.migration import import_checkpoint
from q8trt.quantization.pytorch_quantization_library import PACKAGE, PytorchQuantization, load
from q8trt.quantization.recipe import QatSpec, QuantizerSpec, Recipe, load_recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.usefixtures("quick_export"),
]


@pytest.fixture(scope="session")
def theirs() -> PytorchQuantization:
    try:
        return PytorchQuantization()
    except ConfigError as error:
        pytest.skip(str(error).partition(":")[0])


@pytest.fixture
def not_imported() -> Iterator[None]:
    """As if the library had not been imported yet, whether it is there or not."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}
    for name in kept:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    sys.modules.update(kept)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal values with a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (1 + 3 * (torch.rand(shape, generator=generator) > 0.98))


# Without the library


@pytest.mark.usefixtures("not_imported")
def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^pytorch-quantization is not installed: the package index has only a place"
    ):
        library("pytorch-quantization")
    with pytest.raises(ConfigError) as caught:
        load()
    for hint in ("tools/pytorch-quantization", "github.com/NVIDIA/TensorRT", "PYTHONPATH", "--quantizer modelopt"):
        assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("not_imported")
def test_a_folder_of_that_name_is_not_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE).mkdir()
    monkeypatch.setattr(
        sys, "path", [str(tmp_path), *(path for path in sys.path if not (Path(path) / PACKAGE).is_dir())]
    )
    with pytest.raises(ConfigError, match="is not installed"):
        load()


@pytest.mark.usefixtures("not_imported")
def test_an_import_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text(
        "from pytorch_quantization import cuda_ext, version\nimport no_such_dependency\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"cannot be imported: ModuleNotFoundError: No module named 'no_such_dependency'"
    ):
        load()
    assert not [name for name in sys.modules if name.partition(".")[0] == PACKAGE]


def test_only_what_is_missing_gets_a_stand_in(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE
    package.mkdir()
    made = library_module._stand_ins(package)
    assert set(made) == {f"{PACKAGE}.cuda_ext", f"{PACKAGE}.version"}
    assert made[f"{PACKAGE}.version"].__version__ == "unknown"
    (tmp_path / "VERSION").write_text("2.2.1\n")
    assert library_module._stand_ins(package)[f"{PACKAGE}.version"].__version__ == "2.2.1"
    with pytest.raises(RuntimeError, match=r"without its compiled CUDA kernels \(pytorch_quantization\.cuda_ext\)"):
        made[f"{PACKAGE}.cuda_ext"].fake_tensor_quant(torch.ones(1), torch.ones(1))
    (package / "cuda_ext.py").touch()
    (package / "version.py").touch()
    assert not library_module._stand_ins(package)


# The library itself


def test_what_the_library_is(theirs: PytorchQuantization) -> None:
    assert theirs.name == "pytorch-quantization"
    assert theirs.version()[0].isdigit()
    assert type(theirs.new_quantizer(QuantizerSpec())).__module__ == "pytorch_quantization.nn.modules.tensor_quantizer"
    assert library("pytorch-quantization").version() == theirs.version()


@pytest.mark.usefixtures("theirs")
def test_importing_it_leaves_logging_alone() -> None:
    """In a process of its own: the library replaces the handlers when it is first imported, and pytest has its own."""
    script = """
        import logging, sys, torch
        from q8trt.quantization.pytorch_quantization_library import PytorchQuantization
        from q8trt.quantization.recipe import QuantizerSpec
        handler, root = logging.StreamHandler(sys.stderr), logging.getLogger()
        root.addHandler(handler)
        quantizer = PytorchQuantization().new_quantizer(QuantizerSpec())
        assert (root.handlers, root.level) == ([handler], logging.WARNING), root
        quantizer.amax = torch.tensor(1.0)  # of which the library warns, and torch warns of the library
        quantizer.disable_calib()
    """
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("num_bits", [8, 4, 2])
@pytest.mark.parametrize("axis", [None, 0])
def test_the_same_bits_as_modelopt_forward_and_backward(
    theirs: PytorchQuantization, num_bits: int, axis: int | None
) -> None:
    spec = QuantizerSpec(num_bits=num_bits, axis=axis)
    values = random(64, 48)
    amax = 0.3 * (values.abs().max() if axis is None else values.abs().amax(1, keepdim=True))
    outputs, gradients = [], []
    for source in (theirs, MODELOPT):
        quantizer: Any = source.new_quantizer(spec)
        quantizer.amax = amax.clone()
        inputs = values.clone().requires_grad_()
        output = quantizer(inputs)
        (output * random(64, 48, seed=1)).sum().backward()
        outputs.append(output.detach())
        gradients.append(inputs.grad)
        assert (quantizer._amax.shape, quantizer.axis, quantizer.num_bits) == (amax.shape, axis, num_bits)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(gradients[0], gradients[1])
    largest = np.float32(2 ** (num_bits - 1) - 1)
    scale = largest / amax.numpy()
    expected = np.clip(np.round(values.numpy() * scale), -largest - 1, largest) / scale
    np.testing.assert_array_equal(outputs[0].numpy(), expected)
    assert outputs[0].min() < -amax.min(), "TensorRT's integers reach -128"
    assert torch.equal(gradients[0] == 0, values.abs() > amax)


def test_kernels_that_are_absent_are_replaced_by_torch(theirs: PytorchQuantization, monkeypatch: Any) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    tensor_quant = sys.modules[f"{PACKAGE}.tensor_quant"]
    stand_in = SimpleNamespace(
        fake_tensor_quant=library_module._no_kernel, fake_tensor_quant_with_axis=library_module._no_kernel
    )
    monkeypatch.setattr(tensor_quant, "cuda_ext", stand_in)
    context = SimpleNamespace(save_for_backward=lambda *tensors: None)
    values, amax = random(8, 8), torch.tensor(2.0)
    forward = tensor_quant.FakeTensorQuantFunction.forward
    expected = forward(context, values, amax, 8, False, False)
    assert torch.equal(forward(context, values.as_subclass(OnGpu), amax, 8, False, False), expected)


def collected(theirs: PytorchQuantization, batches: list[torch.Tensor], **spec: Any) -> torch.Tensor | None:
    calibrator = theirs.new_calibrator(QuantizerSpec(**spec))
    for batch in batches:
        calibrator.collect(batch)
    return calibrator.compute_amax()


def test_max(theirs: PytorchQuantization) -> None:
    batches = [random(8, 16, seed=seed) * (seed + 1) for seed in (1, 2, 0)]
    amax = collected(theirs, batches)
    assert amax is not None
    assert amax.shape == ()
    assert amax == max(batch.abs().max() for batch in batches)
    amax = collected(theirs, batches, axis=0)
    assert amax is not None
    assert torch.equal(amax, torch.stack(batches).abs().amax((0, 2)).unsqueeze(1))


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_is_that_of_all_batches(theirs: PytorchQuantization, percentile: float) -> None:
    batches = [random(256, 32, seed=seed) for seed in range(3)]
    amax = collected(theirs, batches, calibrator="percentile", percentile=percentile)
    expected = np.percentile(torch.cat(batches).abs().numpy(), percentile, method="inverted_cdf")
    width = float(batches[0].abs().max()) / 2048
    assert amax is not None
    assert abs(float(amax) - expected) <= width


def test_mse_is_the_least_error(theirs: PytorchQuantization) -> None:
    """Also without CUDA, which the library asks for."""
    values = torch.rand(512, 512, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 2.0
    amax = collected(theirs, [values], calibrator="mse")
    assert amax is not None

    def error(amax: float) -> float:
        scale = 127 / amax
        x = values.abs().double().numpy()
        return float(((np.clip(np.round(x * scale), -128, 127) / scale - x) ** 2).mean())

    largest = float(values.abs().max())
    best = min(error(share * largest) for share in np.linspace(0.1, 1, 100))
    assert error(float(amax)) <= 1.05 * best
    assert error(largest) > 2 * best, "or the largest magnitude would pass"
    with (
        pytest.raises((RuntimeError, AssertionError)) if not torch.cuda.is_available() else pytest.MonkeyPatch.context()
    ):
        torch.ones(1).cuda()


def test_entropy_is_modelopts(theirs: PytorchQuantization) -> None:
    from modelopt.torch.quantization.calib import HistogramCalibrator

    values = random(32, 32)
    other = HistogramCalibrator(8, None, False)
    other.collect(values)
    expected = other.compute_amax("entropy")
    assert collected(theirs, [values], calibrator="entropy") == expected
    assert expected < values.abs().max()


@pytest.mark.parametrize("calibrator", ["max", "percentile", "mse", "entropy"])
def test_nothing_and_only_zeros(theirs: PytorchQuantization, calibrator: str) -> None:
    assert collected(theirs, [], calibrator=calibrator) is None
    assert collected(theirs, [torch.zeros(4, 4)], calibrator=calibrator) == 0


def test_zeros_first(theirs: PytorchQuantization) -> None:
    values = random(64, 64)
    first = collected(theirs, [torch.zeros(2, 2), values], calibrator="percentile", percentile=100)
    assert first == collected(theirs, [values], calibrator="percentile", percentile=100)


def test_batches_too_far_apart_for_a_histogram(theirs: PytorchQuantization) -> None:
    with pytest.raises(QuantizationError, match=r"^a batch reaches 1e\+06, the first one only 0\.001: too far apart"):
        collected(theirs, [torch.tensor([1e-3]), torch.tensor([1e6])], calibrator="percentile")


@pytest.mark.parametrize("calibrator", ["ema", "search"])
def test_calibrators_that_it_lacks(theirs: PytorchQuantization, calibrator: str) -> None:
    message = f"^pytorch-quantization has the calibrators max, percentile, entropy, mse, not '{calibrator}'; choose one"
    with pytest.raises(ConfigError, match=message):
        theirs.new_calibrator(QuantizerSpec(calibrator=calibrator))


def test_histograms_per_channel_that_it_lacks(theirs: PytorchQuantization) -> None:
    with pytest.raises(ConfigError, match=r"calibrates per channel \(axis: 0\) only by 'max', not by 'mse'"):
        theirs.new_calibrator(QuantizerSpec(calibrator="mse", axis=0))
    theirs.new_quantizer(QuantizerSpec(calibrator="mse", axis=0))  # a checkpoint of ModelOpt's may say so


# Through q8trt


def quantized(source: Any, recipe: Recipe) -> Any:
    model = make_model()
    insert_quantizers(model, recipe, source)
    calibrate(model, recipe, [make_batch(seed=seed) for seed in range(3)], library=source)
    return model


def train_step(model: Any) -> dict[str, torch.Tensor]:
    """Parameters after one step of QAT."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**make_batch(seed=5), labels=torch.tensor([0.0, 1.0, 2.0])).loss.backward()
    optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_calibration_and_qat_through_the_same_insertion(theirs: PytorchQuantization) -> None:
    """With ranges from the largest magnitude, which both libraries agree on, to the bit what ModelOpt's quantizers do."""
    specs = {name: QuantizerSpec(axis=spec.axis) for name, spec in load_recipe("full").sites.items()}
    recipe = Recipe("largest", sites=specs)
    one, other = quantized(theirs, recipe), quantized(MODELOPT, recipe)
    quantizers = model_quantizers(one)
    assert {type(quantizer).__module__.partition(".")[0] for quantizer in quantizers.values()} == {PACKAGE}
    assert len(quantizers) == len(model_quantizers(other)) == 39
    for key, quantizer in model_quantizers(other).items():
        assert torch.equal(quantizers[key].amax, quantizer.amax), key
    with torch.no_grad():
        logits = one(**make_batch(seed=4)).logits
        assert torch.equal(logits, other(**make_batch(seed=4)).logits)
        assert (logits - make_model()(**make_batch(seed=4)).logits).abs().max() > 1e-4
    after, expected = train_step(one), train_step(other)
    before = dict(make_model().named_parameters())
    for name, parameter in after.items():
        assert torch.equal(parameter, expected[name]), name
    assert not torch.equal(
        after["bert.encoder.layer.0.output.dense.weight"], before["bert.encoder.layer.0.output.dense.weight"]
    )


@pytest.mark.parametrize("ranges", ["ema", "lsq", "pact"])
def test_ranges_that_move(theirs: PytorchQuantization, ranges: str) -> None:
    """The three ways to train a range are q8trt's and take either library's quantizers."""
    from q8trt.quantization.ranges import apply_ranges

    recipe = Recipe("moving", sites={"gelu_out": QuantizerSpec()}, qat=QatSpec(ranges=ranges))
    found = []
    for source in (theirs, MODELOPT):
        model = make_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        for quantizer in insert_quantizers(model, recipe, source).values():
            quantizer.amax = torch.tensor(1.0)
        with apply_ranges(model, recipe) as moving:
            optimizer = torch.optim.SGD([*model.parameters()], lr=0.1)
            moving.attach(optimizer)
            model(**make_batch(seed=5), labels=torch.tensor([0.0, 1.0, 2.0])).loss.backward()
            optimizer.step()
        found.append([float(quantizer.amax) for quantizer in model_quantizers(model).values()])
    assert found[0] == found[1]
    assert 1.0 not in found[0]


def test_a_checkpoint_does_not_know_the_library(theirs: PytorchQuantization, tmp_path: Path) -> None:
    from q8trt.models.checkpoints import load_quantized, save_checkpoint

    recipe = load_recipe("full")
    model = quantized(theirs, recipe)
    save_checkpoint(tmp_path / "int8", model, make_tokenizer(), recipe)
    with torch.no_grad():
        expected = model(**make_batch(seed=4)).logits
        for source in (None, theirs):
            loaded, _ = load_quantized(tmp_path / "int8", source)
            assert torch.equal(loaded(**make_batch(seed=4)).logits, expected)


def test_export_of_a_model_with_its_quantizers(theirs: PytorchQuantization, tmp_path: Path) -> None:
    """Saved, loaded with ModelOpt's quantizers, exported: what ONNX Runtime computes is what the library computed."""
    from q8trt.export.onnx import export_onnx
    from q8trt.models.checkpoints import load_quantized, save_checkpoint
    from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

    recipe = load_recipe("linear")
    model = quantized(theirs, recipe)
    save_checkpoint(tmp_path / "int8", model, make_tokenizer(), recipe)
    batch = make_batch(seed=4)
    loaded, _ = load_quantized(tmp_path / "int8")
    exported = export_onnx(loaded, tmp_path / "model.onnx", "int8", list(batch))
    assert exported.folded_weights == 12
    with OnnxRuntimeRunner(exported.path, "int8") as runner:
        logits = runner.infer({name: tensor.numpy() for name, tensor in batch.items()})
    with torch.no_grad():
        expected = model(**batch).logits
        error = np.abs(expected - make_model()(**batch).logits).max()
    assert np.abs(logits - expected.numpy()).max() < 0.1 * error


def test_a_checkpoint_that_the_library_made(theirs: PytorchQuantization, tmp_path: Path) -> None:
    """The way of its users: quant_modules.initialize(), calibrate, load_calib_amax, torch.save."""
    from pytorch_quantization import quant_modules

    quant_modules.initialize()
    try:
        model = make_model()
    finally:
        quant_modules.deactivate()
    quantizers = [module for name, module in model.named_modules() if name.endswith("_quantizer")]
    assert len(quantizers) == 28
    for quantizer in quantizers:
        quantizer.disable_quant()
        quantizer.enable_calib()
    with torch.no_grad():
        for seed in range(3):
            model(**make_batch(seed=seed))
        for quantizer in quantizers:
            quantizer.load_calib_amax()
            quantizer.disable_calib()
            quantizer.enable_quant()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        for source in (None, theirs):
            ours, recipe, notes = import_checkpoint(tmp_path, make_model(seed=1), library=source, allow_pickle=True)
            assert len(model_quantizers(ours)) == 24
            package = type(model_quantizers(ours)["classifier.input"]).__module__.partition(".")[0]
            assert package == (PACKAGE if source else "modelopt")
            assert recipe.sites["query.weight"].axis == 0
            assert not any("share the largest" in note for note in notes), "Q, K and V saw one tensor"
            for seed in range(3, 6):
                assert torch.equal(ours(**make_batch(seed=seed)).logits, model(**make_batch(seed=seed)).logits)
