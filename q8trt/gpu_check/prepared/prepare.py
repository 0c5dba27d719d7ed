"""The first half of a prepared check, on any machine with torch: ONNX files, rows, expected logits, and the steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from q8trt import files
from q8trt.engine.shapes import Shape, ShapeProfile, largest, show
from q8trt.gpu_check import random_models
from q8trt.gpu_check.config import TOLERANCES
from q8trt.gpu_check.models import dev_data, finished_checkpoints
from q8trt.gpu_check.prepared.kit import KIT_FILE, EngineFile, Kind, Kit, Rows, Step
from q8trt.lint import LintConfig, forecast_sites
from q8trt.models import checkpoints, load_tokenizer, model_inputs
from q8trt.quantization.precision import Precision
from q8trt.runs.config import FinetuneConfig
from q8trt.runs.run import Run
from q8trt.runtime.timing.lengths import evenly_spaced
from q8trt.runtime.timing.work import work_of_onnx
from q8trt.tasks.data import bucketed_batches, load_dev, tokenize

if TYPE_CHECKING:
    from q8trt.quantization.recipe import Recipe

MINILM, BASE, LARGE, MPNET = "minilm", "bert-base", "bert-large", "mpnet-base"
_CALIBRATION_ROWS = 32
_LENGTH = 128
#: Rows with random weights: their logits are compared, not scored.
_RANDOM_ROWS = 8


@dataclass(frozen=True)
class Variant:
    """A way to make a graph of a model.

    Attributes:
        name: part of the engine's name.
        recipe: name of the recipe; None for a float graph.
        half: whether floats are FP16; otherwise they are FP32.
        without: sites of the recipe to leave out.
        weight_axis: axis of the scales of weights: 0 for one per channel, None for one per tensor.
    """

    name: str
    recipe: str | None = None
    half: bool = True
    fuse_qkv: bool = True
    without: tuple[str, ...] = ()
    weight_axis: int | None = 0

    @property
    def precision(self) -> Precision:
        """The precision of its graph."""
        return Precision.parse("+".join(["int8"] * bool(self.recipe) + ["fp16"] * self.half) or "fp32")

    def load_recipe(self, searches: bool) -> Recipe:
        """Return its recipe, without alternatives and QAT start; the variant must have one.

        Without `searches`, ranges are maxima, which suffices if only times matter.
        """
        from q8trt.quantization.recipe import Recipe, load_recipe

        data = load_recipe(str(self.recipe)).to_dict()
        data["qat"].pop("start", None)
        data.pop("alternatives", None)
        data["sites"] = {key: spec for key, spec in data["sites"].items() if key not in self.without}
        for key, spec in data["sites"].items():
            if key.endswith(".weight"):
                spec["axis"] = self.weight_axis
            if not searches and spec["calibrator"] != "fixed":
                spec["calibrator"] = "max"
        return Recipe.from_dict(data)


FP32, FP16, INT8 = Variant("FP32", half=False), Variant("FP16"), Variant("INT8+FP16", "gpu")
FULL = Variant("INT8+FP16 full", "full")
#: Variants that change one option of `INT8`; they run only at the batch size nearest 32.
CHANGES = (
    FULL,
    Variant("INT8+FP16 unfused", "gpu", fuse_qkv=False),
    Variant("INT8+FP16 linear", "linear"),
    Variant("INT8+FP16 without softmax_out", "gpu", without=("softmax_out",)),
    Variant("INT8+FP16 one weight scale", "gpu", weight_axis=None),
)


@dataclass(frozen=True)
class KitConfig:
    """The size of a prepared check. The defaults fit 420 s on an H100, as far as the estimates are right.

    Attributes:
        batches: batch sizes of BERT-base at `length` tokens, each with a separate profile.
        lengths: (batch, sequence) of other lengths.
        large: whether to include BERT-large.
        max_rows: development rows of MiniLM; None for all.
        iterations: timed iterations of each shape.
        loads: number of times that an engine is loaded.
        build_s: the estimated seconds of a build, by model.
        mpnet: whether to include MPNet-base, which adds a bias of relative positions to its attention.
    """

    batches: tuple[int, ...] = (1, 8, 32, 128)
    length: int = _LENGTH
    lengths: tuple[Shape, ...] = ((32, 32), (32, 64), (8, 384))
    large: bool = True
    max_rows: int | None = None
    iterations: int = 100
    loads: int = 100
    build_s: dict[str, float] = field(default_factory=lambda: {MINILM: 18.0, BASE: 35.0, LARGE: 70.0, MPNET: 35.0})
    mpnet: bool = True

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of BERT-base."""
        return tuple((batch, self.length) for batch in self.batches)

    @property
    def many(self) -> Shape:
        """The shape of the variants, with the batch size nearest 32."""
        return min(self.shapes, key=lambda shape: abs(shape[0] - 32))


def fixed(shapes: Sequence[Shape]) -> tuple[ShapeProfile, ...]:
    """Return a profile for each shape, which accepts only that shape."""
    return tuple(ShapeProfile(shape, shape, shape) for shape in shapes)


def prepare(
    run: Run,
    data_dir: str | None,
    folder: Path,
    provenance: dict[str, Any],
    on_message: Callable[[str], object],
    config: KitConfig | None = None,
) -> Kit:
    """Make the folder of a prepared check, whole or not at all; the folder of an earlier preparation is replaced.

    Args:
        run: a finished run on STS-B of a model with BERT's vocabulary.
        data_dir: the GLUE folder; None for the built-in sample.
        folder: the folder to write.
        provenance: of the files, with the commit that made them.
        on_message: called with a line for each graph.
        config: the size of the check; None for the defaults.

    Raises:
        ConfigError: the run is not finished, is on another task while `data_dir` is None, or the folder has other files.
        BusyError: another process writes the folder.
    """
    config = config or KitConfig()
    target = files.replaceable_folder(folder, KIT_FOLDER, overwrite=True, option="--prepare")
    with files.exclusive(target), files.atomic_folder(target) as temporary:
        kitchen = _Preparation(run, data_dir, temporary, config, on_message)
        engines = tuple(kitchen.engines())
        kit = Kit(engines, tuple(steps(config)), provenance)
        kit.write(temporary)
    return kit


def steps(config: KitConfig) -> Iterator[Step]:
    """Yield the steps, the most valuable first."""

    def build(model: str, variant: Variant, note: str = "") -> Step:
        name = f"{model} {variant.name}{note}"
        return Step(f"build {name}", Kind.BUILD, (name,), config.build_s[model])

    def latency(names: Sequence[str], shapes: Sequence[Shape], title: str, estimate_s: float) -> Step:
        return Step(f"latency {title}", Kind.LATENCY, tuple(names), estimate_s, tuple(shapes), config.iterations)

    for variant in (FP16, INT8, FULL):
        yield build(MINILM, variant)
    pair = [f"{BASE} {variant.name}" for variant in (FP16, INT8)]
    yield from (build(BASE, variant) for variant in (FP16, INT8))
    yield latency(pair, config.shapes, f"{BASE} {config.length} tokens", 25)
    at = f" at {show(config.many)}"
    yield from (build(BASE, variant, at) for variant in CHANGES)
    changes = [f"{BASE} {variant.name}{at}" for variant in CHANGES]
    yield latency([*pair, *changes], [config.many], f"variants{at}", 25)
    yield Step(f"torch FP16 {BASE}", Kind.TORCH, (pair[0],), 30, config.shapes, config.iterations)
    yield Step("8 threads over one engine", Kind.THREADS, (pair[1],), 15, config.shapes[:3])
    yield Step("arrays of torch and CuPy", Kind.ARRAYS, (pair[1],), 15, config.shapes[:1])
    yield Step(f"{config.loads} loads", Kind.LOADS, (pair[1],), 60, config.shapes[:1], config.loads)
    for variant in (FP16, INT8):
        yield build(BASE, variant, " other lengths")
    yield latency([f"{name} other lengths" for name in pair], config.lengths, f"{BASE} other lengths", 25)
    real = tuple(f"{MINILM} {variant.name}" for variant in (FP16, INT8))
    yield Step("length buckets", Kind.BUCKETS, real, 20)
    yield build(BASE, FP32, at)
    yield latency([f"{BASE} FP32{at}", *pair], [config.many], f"FP32{at}", 20)
    if config.large:
        yield from (build(LARGE, variant) for variant in (FP16, INT8))
        shapes = config.shapes[0], config.many
        yield latency([f"{LARGE} {variant.name}" for variant in (FP16, INT8)], shapes, LARGE, 30)
    if config.mpnet:
        yield from (build(MPNET, variant, at) for variant in (FP16, INT8))
        yield latency([f"{MPNET} {variant.name}{at}" for variant in (FP16, INT8)], [config.many], f"{MPNET}{at}", 20)


def _listed(folder: Path) -> frozenset[str] | None:
    """Return the names that a preparation wrote into a folder; None if the folder is not a prepared check."""
    try:
        kit = files.decode(Kit, files.read_json(folder / KIT_FILE))
    except (OSError, files.MalformedError):
        return None
    rows = {engine.rows.file for engine in kit.engines if engine.rows}
    return frozenset({KIT_FILE} | rows | {engine.onnx for engine in kit.engines})


KIT_FOLDER = files.FolderKind("a prepared check", _listed)


class _Preparation:
    """One preparation. Models are loaded when their files are made."""

    def __init__(
        self, run: Run, data_dir: str | None, folder: Path, config: KitConfig, on_message: Callable[[str], object]
    ) -> None:
        self._run, self._data_dir, self._folder = run, data_dir, folder
        self._config, self._on_message = config, on_message
        fp32, _ = finished_checkpoints(run)
        self._tokenizer = load_tokenizer(str(fp32))
        self._inputs = model_inputs(self._tokenizer)

    def engines(self) -> Iterator[EngineFile]:
        """Write all files and yield the engines, in any order."""
        config = self._config
        most = min(32, max(config.batches))
        rows = ShapeProfile((1, 1), (most, min(64, config.length)), (most, config.length))
        yield from self._of_model(MINILM, (FP16, INT8, FULL), (rows,))
        at = f" at {show(config.many)}"
        usual = list(self._of_model(BASE, (FP16, INT8), fixed(config.shapes)))
        yield from usual
        others = fixed(config.lengths)
        yield from (replace(each, name=f"{each.name} other lengths", profiles=others, rows=None) for each in usual)
        yield from self._of_model(BASE, (*CHANGES, FP32), fixed([config.many]), at)
        if config.large:
            yield from self._of_model(LARGE, (FP16, INT8), fixed([config.shapes[0], config.many]))
        if config.mpnet:
            yield from self._of_model(MPNET, (FP16, INT8), fixed([config.many]), at)

    def _of_model(
        self, model: str, variants: Sequence[Variant], profiles: tuple[ShapeProfile, ...], note: str = ""
    ) -> Iterator[EngineFile]:
        """Write the graphs and the rows of one model's variants."""
        is_real = model == MINILM
        inputs = tuple(name for name in self._inputs if model != MPNET or name != "token_type_ids")
        float_model = self._trained() if is_real else random_models.tiled_model(model)
        batches, labels = self._rows() if is_real else (self._random_rows(profiles, inputs), None)
        logits = {"fp32": _logits(float_model, batches)}
        names: list[tuple[Variant, str]] = []
        stem = "".join(letter if letter.isalnum() else "-" for letter in f"{model}{note}")
        for variant in variants:
            self._on_message(f"{model} {variant.name}{note}")
            quantized = float_model
            if variant.recipe:
                trained = self._trained_with(variant) if is_real else None
                quantized = trained or self._calibrated(float_model, variant.load_recipe(searches=is_real), batches)
                logits[variant.name] = _logits(quantized, batches)
            names.append((variant, self._export(quantized, variant, stem, batches, inputs)))
        arrays = {f"{name}.{number}": each[name] for number, each in enumerate(batches) for name in inputs}
        arrays |= {f"logits.{name}": each for name, each in logits.items()} | (
            {} if labels is None else {"labels": labels}
        )
        np.savez(self._folder / f"{stem}.npz", **arrays)  # type: ignore[arg-type]
        for variant, onnx in names:
            reference = variant.name if variant.recipe else "fp32"
            allowed = TOLERANCES["real"][variant.precision] if is_real else None
            rows = Rows(f"{stem}.npz", reference, *((allowed.largest, allowed.mean) if allowed else (None, None)))
            work = work_of_onnx(self._folder / onnx)
            yield EngineFile(
                f"{model} {variant.name}{note}", model, onnx, variant.precision, profiles, inputs,
                work.weights if work else 0, work.attention_width if work else 0,
                forecast_sites(self._folder / onnx, LintConfig(max_shapes=largest(profiles))), rows,
            )  # fmt: skip

    def _export(
        self, model: Any, variant: Variant, stem: str, batches: Sequence[dict[str, np.ndarray]], inputs: tuple[str, ...]
    ) -> str:
        from q8trt.export.onnx import export_onnx
        from q8trt.export.options import ExportOptions

        name = "".join(letter if letter.isalnum() else "-" for letter in f"{stem}-{variant.name}".casefold()) + ".onnx"
        options = ExportOptions(fuse_qkv=variant.fuse_qkv)
        watched = batches[:2] if variant.half else ()
        export_onnx(model, self._folder / name, variant.precision, inputs, options, watched)
        return name

    def _trained(self) -> Any:
        task = FinetuneConfig.from_dict(self._run.record.config).data.resolved_task
        return checkpoints.load_finetuned(finished_checkpoints(self._run)[0], task)

    def _trained_with(self, variant: Variant) -> Any:
        """Return the run's quantized model; None if the run has another recipe."""
        _, int8 = finished_checkpoints(self._run)
        has_recipe = checkpoints.load_recipe_of(int8).name == variant.recipe
        return checkpoints.load_quantized(int8)[0] if has_recipe else None

    def _calibrated(self, float_model: Any, recipe: Recipe, batches: Sequence[dict[str, np.ndarray]]) -> Any:
        """Return a copy of a model, quantized by a recipe and calibrated on some of `batches`."""
        import torch

        from q8trt.quantization.calibration import calibrate
        from q8trt.quantization.insertion import insert_quantizers

        quantized = copy.deepcopy(float_model)
        insert_quantizers(quantized, recipe)
        rows = batches[:: max(1, len(batches) * len(batches[0]["input_ids"]) // _CALIBRATION_ROWS)]
        calibrate(
            quantized, recipe, [{name: torch.from_numpy(array).long() for name, array in each.items()} for each in rows]
        )
        return quantized

    def _rows(self) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
        """Return MiniLM's development rows in batches padded to length buckets, and their labels in that order."""
        split = next(iter(load_dev(dev_data(self._run, self._data_dir)).values()))
        features = tokenize(split, self._tokenizer, self._config.length)
        if self._config.max_rows is not None:
            features = evenly_spaced(features, self._config.max_rows)
        size = min(32, max(self._config.batches))
        batches = list(bucketed_batches(features, size, self._tokenizer.pad_token_id))
        arrays = [{name: each.arrays[name].astype(np.int32) for name in self._inputs} for each in batches]
        assert features.labels is not None
        return arrays, np.concatenate([features.labels[each.indices] for each in batches]).astype(np.float32)

    def _random_rows(self, profiles: Sequence[ShapeProfile], inputs: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        """Return one batch of full-length rows, of the profile whose batch size is nearest to `_RANDOM_ROWS`."""
        from q8trt.runtime.timing.latency import random_inputs

        batch, sequence = min((profile.opt for profile in profiles), key=lambda shape: abs(shape[0] - _RANDOM_ROWS))
        vocabulary = min(1000, len(self._tokenizer))
        return [random_inputs(batch, sequence, vocabulary, input_names=inputs)]


def _logits(model: Any, batches: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """Return the logits of the batches' rows by torch in FP32, (rows, num_labels) float32."""
    import torch

    with torch.inference_mode():
        outputs = [model(**{name: torch.from_numpy(each).long() for name, each in batch.items()}) for batch in batches]
    return np.concatenate([output.logits.float().numpy() for output in outputs])
