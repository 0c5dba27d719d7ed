"""Sensitivity: each cost against a model that carries that site's quantizer alone, and the search for a recipe."""

from __future__ import annotations

import copy
import json
import shlex
import shutil
import zlib
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cli_fixtures import *  # noqa: F403 - fixtures
from cli_fixtures import Refused
from conftest import APART, ARCHITECTURES, WITH_TOKEN_TYPES, layer_count
from embedding_fixtures import TEXTS, write_embedding_folder
from scipy import stats
from tiny_data import write_mnli, write_sts_b

from q8trt import api
from q8trt.cli.main import run_command
from q8trt.errors import DataError, InterruptedRunError, QuantizationError
from q8trt.evaluation import sensitivity
from q8trt.evaluation.sensitivity import (
    Cost,
    Part,
    Probe,
    Sensitivity,
    Setup,
    fewest_off,
    parts,
    recipe_text,
    recipe_without,
    scoring,
    search,
)
from q8trt.models.checkpoints import load_finetuned
from q8trt.quantization.insertion import insert_quantizers, model_quantizers
from q8trt.quantization.precision import Precision
from q8trt.quantization.recipe import QatSpec, QuantizerSpec, Recipe, load_recipe
from q8trt.quantization.sites import encoder_sites
from q8trt.runs.config import CalibrationConfig, FinetuneConfig, config_of_run
from q8trt.runs.training_config import TrainingConfig
from q8trt.tasks.data import DataConfig, Features
from q8trt.tasks.glue import get_task
from q8trt.tasks.heads import Embedding, Head, HeadKind
from q8trt.training.calibrating import quantize
from q8trt.training.execution import calibration_of
from q8trt.training.finetuning import Inputs, evaluate_model, load_inputs

#: Every site that there is, pooler and head too.
EVERYTHING = Recipe("everything", sites={**load_recipe("full").sites, **{
    f"{head}.{part}": QuantizerSpec() for head in ("pooler", "classifier") for part in ("input", "weight")
}})  # fmt: skip


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sts_b(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def config_of(glue: Path, tiny_checkpoint_of: Callable[..., Path]) -> Callable[..., FinetuneConfig]:
    def build(architecture: str = "bert", recipe: Recipe = EVERYTHING, seed: int = 42) -> FinetuneConfig:
        return FinetuneConfig(
            data=DataConfig(task="STS-B", data_dir=str(glue), max_seq_length=32),
            training=TrainingConfig(per_device_eval_batch_size=8, seed=seed),
            from_fp32=str(tiny_checkpoint_of(architecture, 1)),
            recipe=recipe,
            calibration_samples=16,
        )

    return build


@pytest.fixture(scope="session")
def prepared(config_of: Callable[..., FinetuneConfig]) -> Callable[..., tuple[FinetuneConfig, Inputs, Any, Any]]:
    """Configuration, rows, float model, and a quantized copy that is one's own."""

    def build(*args: Any, **kwargs: Any) -> tuple[FinetuneConfig, Inputs, Any, Any]:
        config = config_of(*args, **kwargs)
        inputs = load_inputs(config)
        model = load_finetuned(str(config.from_fp32), config.data.resolved_task)
        return config, inputs, model, quantize(model, config, inputs)[0]

    return build


def logits_row_by_row(model: Any, rows: Features, types: bool) -> np.ndarray:
    """The plain way: each row alone, no padding, (rows,) float32."""
    import torch

    logits = []
    for index in range(len(rows)):
        row = {"input_ids": torch.tensor([rows.input_ids[index]])}
        if types and rows.token_type_ids is not None:
            row["token_type_ids"] = torch.tensor([rows.token_type_ids[index]])
        with torch.no_grad():
            logits.append(model(**row).logits[0, 0].item())
    return np.array(logits, dtype=np.float32)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *APART])
def test_a_cost_is_that_of_a_model_with_this_quantizer_alone(architecture: str, prepared: Callable[..., Any]) -> None:
    config, inputs, model, quantized = prepared(architecture)
    rows = inputs.dev["dev"]
    types = architecture in WITH_TOKEN_TYPES
    probe = sensitivity.probe_of(quantized, rows, config, inputs)
    ranges = {key: quantizer.amax.clone() for key, quantizer in model_quantizers(quantized).items()}
    exact = logits_row_by_row(model, rows, types)
    np.testing.assert_allclose(probe.float_logits[:, 0], exact, atol=1e-5)
    names = ("layer.0.qkv_input", "layer.1.softmax_out", "layer.1.gelu_out", "layer.1.ffn_residual.skip",
             "layer.1.attention_output.weight", "embeddings.word", "pooler.weight", "classifier.input")  # fmt: skip
    combined = ["layer.0.context", "layer.1.query.weight", "classifier.weight"]
    last = f"layer.{layer_count(architecture) - 1}."
    for sites in ([key.replace("layer.1.", last) for key in keys] for keys in (*([name] for name in names), combined)):
        alone = copy.deepcopy(model)
        specs = {key: spec for site in probe.sites if (key := site.key) in sites and (spec := EVERYTHING.spec(site))}
        for key, quantizer in insert_quantizers(alone, Recipe("alone", sites=specs)).items():
            quantizer.amax = ranges[key]
        expected = logits_row_by_row(alone.eval(), rows, types)
        cost = probe.cost(sites)
        assert cost.logits_mse == pytest.approx(np.mean((expected - exact) ** 2), rel=1e-2, abs=1e-9), sites
        assert cost.logits_max_abs == pytest.approx(np.abs(expected - exact).max(), rel=1e-2, abs=1e-5), sites
        assert cost.logits_mse > 1e-9, sites
        drop = stats.pearsonr(exact, rows.labels)[0] - stats.pearsonr(expected, rows.labels)[0]
        assert cost.drop_x100 == pytest.approx(100 * drop, abs=1e-3), sites


def test_layers_below_a_site_are_not_computed_and_nothing_changes_by_it(prepared: Callable[..., Any]) -> None:
    config, inputs, _, quantized = prepared()
    probe = sensitivity.probe_of(quantized, inputs.dev["dev"], config, inputs)
    layers = list(quantized.base_model.encoder.layer)
    calls = [0, 0]
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    batches = 2  # 16 rows in batches of 8
    keys = ["layer.1.gelu_out", "layer.1.ffn_residual.branch", "classifier.weight"]
    starts = [probe.start([key]) for key in keys]
    assert starts == [1, 1, 2]
    assert probe.start(keys) == 1
    assert probe.start(["embeddings.word", "classifier.weight"]) == probe.start(()) == 0
    costs = [probe.cost([key]) for key in keys]
    # Layer 0 once, to remember it; layer 1 for two sites, and once to remember it in turn.
    assert calls == [batches, (1 + 2 + 1) * batches]
    assert list(quantized.base_model.encoder.layer) == layers
    probe._starts = dict.fromkeys(probe._starts, 0)
    assert [probe.cost([key]) for key in keys] == costs  # to the bit


def test_the_layers_come_back_after_an_error(prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config, inputs, _, quantized = prepared()
    probe = sensitivity.probe_of(quantized, inputs.dev["dev"], config, inputs)
    layers = list(quantized.base_model.encoder.layer)

    def stop(arrays: Any) -> Any:
        raise KeyboardInterrupt

    before = probe.cost(["layer.1.gelu_out"])
    with monkeypatch.context() as patch:
        patch.setattr(probe._runner, "infer", stop)
        with pytest.raises(KeyboardInterrupt):
            probe.cost(["layer.1.gelu_out"])
    assert list(quantized.base_model.encoder.layer) == layers
    assert probe.cost(["layer.1.gelu_out"]) == before


def test_a_logit_that_is_not_finite_is_an_error(prepared: Callable[..., Any]) -> None:
    config, inputs, _, quantized = prepared()
    probe = sensitivity.probe_of(quantized, inputs.dev["dev"], config, inputs)
    model_quantizers(quantized)["layer.1.gelu_out"].amax = float("nan")
    with pytest.raises(DataError, match="rows of logits are not finite"):
        probe.cost(["layer.1.gelu_out"])


def test_what_is_scored() -> None:
    def site(name: str, layer: int | None) -> Any:
        return SimpleNamespace(name=name, layer=layer, key=name if layer is None else f"layer.{layer}.{name}")

    sites = [site("embeddings.word", None), site("a", 0), site("b", 0), site("b", 1), site("classifier.input", None)]
    keys = ("embeddings.word", "layer.0.a", "layer.0.b", "layer.1.b", "classifier.input")
    assert parts(sites) == (
        Part("everything", "all", keys),
        Part("names", "a", ("layer.0.a",)),
        Part("names", "b", ("layer.0.b", "layer.1.b")),
        Part("layers", "0", ("layer.0.a", "layer.0.b")),
        Part("layers", "1", ("layer.1.b",)),
        *(Part("sites", key, (key,)) for key in keys),
    )


def test_rows_are_chosen_by_the_seed_and_stay_whole(prepared: Callable[..., Any]) -> None:
    _, inputs, _, _ = prepared()
    dev = inputs.dev["dev"]
    chosen = sensitivity.choose_rows(dev, 5, seed=1)
    places = [dev.input_ids.index(ids) for ids in chosen.input_ids]
    assert places == sorted(set(places))
    assert [chosen[index] for index in range(5)] == [dev[place] for place in places]
    assert sensitivity.choose_rows(dev, 5, seed=1).fingerprint == chosen.fingerprint
    assert sensitivity.choose_rows(dev, 5, seed=2).fingerprint != chosen.fingerprint
    assert sensitivity.choose_rows(dev, 500, seed=1).fingerprint == dev.fingerprint


def test_rows_without_labels_of_a_task_that_has_them_cannot_be_scored(prepared: Callable[..., Any]) -> None:
    config, inputs, _, quantized = prepared()
    unlabeled = replace(inputs.dev["dev"], labels=None)
    for rows in (unlabeled, inputs.dev["dev"].take(0)):
        with pytest.raises(
            DataError, match=r"^dev has no labeled rows to score on; give development data with labels$"
        ):
            Probe(quantized, rows, config.data.resolved_task, 0, 32)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(f"{text} {word}" for text in TEXTS for word in ("big", "old", "red", "here")))
    return path


def test_without_labels_a_cost_is_the_drift_of_embeddings(texts: Path, tmp_path: Path) -> None:
    """Of a run that `q8trt quantize` made, by its own recipe, and with the FP32 model as the reference."""
    folder = write_embedding_folder(tmp_path / "model")
    run = api.quantize(
        folder, texts=texts, recipe="linear", build_engines=False, calibration_samples=16, max_seq_length=16,
        output_dir=tmp_path / "runs" / "mine",
    ).run  # fmt: skip
    lines: list[str] = []
    analysis = api.sensitivity(
        run.path, calibration_samples=16, runs_dir=tmp_path / "runs", max_drop=50.0,
        write_recipe=str(tmp_path / "less.yaml"), on_message=lines.append,
    )  # fmt: skip
    assert analysis.files[0] == run.path / "sensitivity.json"
    setup, costs = analysis.costs.setup, analysis.costs.scores
    assert (setup.recipe["name"], setup.metric, setup.has_labels) == ("linear", "cosine_mean", False)
    assert analysis.costs.float_score_x100 == pytest.approx(100)
    assert analysis.placement is not None
    assert analysis.placement.off == ()
    # The drop is 100 (1 - the mean cosine of the run's calibrated checkpoint to FP32), whose dev rows are the same.
    ptq = run.stage("ptq")
    assert ptq is not None
    assert setup.rows == len(config_of_run(run).data.load("dev"))
    drop = costs["everything"]["all"].drop_x100
    assert drop == pytest.approx(100 * (1 - ptq.scores["dev"]["cosine_mean"]), rel=1e-3)
    assert 0 < costs["sites"]["layer.1.gelu_out"].drop_x100 < drop
    # Normalized embeddings: |a - b|^2 = 2 (1 - cosine), over 32 features.
    assert costs["everything"]["all"].logits_mse == pytest.approx(2 * drop / 100 / 32, rel=1e-3)
    again = api.sensitivity(calibration_samples=16, runs_dir=tmp_path / "runs")  # the newest run, and its scores
    assert again.costs == analysis.costs


def test_pairs_of_embeddings_stay_together(texts: Path, tmp_path: Path) -> None:
    task = replace(get_task("STS-B"), model_head=Head(HeadKind.EMBEDDING, embedding=Embedding(4)))
    rows = Features([[number] for number in range(20)], None, labels=None, task=task, split="dev", source="rows")
    firsts = [ids[0] for ids in sensitivity.choose_rows(rows, 8, seed=3).input_ids]
    assert firsts[::2] == sorted(firsts[::2])
    assert all(a % 2 == 0 and b == a + 1 for a, b in zip(firsts[::2], firsts[1::2], strict=True))
    assert len(firsts) == 8


def test_the_command_of_a_model_of_ones_own(
    texts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_embedding_folder(tmp_path / "model")
    words = ["--texts", str(texts), "--recipe", "linear", "--no_build_engines", "--calibration_samples", "16"]
    assert run_command("quantize", ["model", *words, "--output_dir", "runs/mine"]) == 0
    capsys.readouterr()
    given = ["--sensitivity", "--max_drop", "50", "--write_recipe", "less.yaml", "--calibration_samples", "16"]
    assert run_command("calibrate", given) == 0
    out = capsys.readouterr().out
    assert "rows without labels; cosine_mean x100 to FP32: 9" in " ".join(out.split())
    printed = shlex.split(out.splitlines()[-1].removeprefix("next: q8trt quantize "))
    assert run_command("quantize", [*printed, *words[-3:], "--output_dir", "runs/again"]) == 0
    assert "recipe linear: 20 of" in capsys.readouterr().out


class Counting:
    """Counts the scores, which are numbers without a meaning, and stops like Ctrl-C before one too many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 10**6) -> None:
        self.scores = 0

        def counted(probe: Probe, sites: Collection[str], *args: Any) -> Cost:
            if self.scores == most:
                raise KeyboardInterrupt
            self.scores += 1
            number = zlib.crc32(" ".join(sorted(sites)).encode())
            return Cost(*(float(number % divisor) for divisor in (100, 101, 103)))

        monkeypatch.setattr(Probe, "cost", counted)


def test_a_stopped_measurement_goes_on_where_it_was(
    prepared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs, model, quantized = prepared()

    def measure(most: int = 10**6, **changes: Any) -> tuple[Sensitivity, int]:
        settings = {"model": model, "config": config, "samples": 12, **changes}
        with monkeypatch.context() as patch:
            counting = Counting(patch, most)
            result = sensitivity.measure(
                settings["model"], quantized, settings["config"], inputs, tmp_path, settings["samples"]
            )
            return result, counting.scores

    whole, count = measure()
    assert count == len(parts(encoder_sites(quantized))) == 43 + 18 + 2 + 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        InterruptedRunError, match=f"^stopped after 50 of {count} scores, which are saved; run the same"
    ):
        measure(50)
    again, left = measure()
    assert left == count - 50
    assert again == whole
    assert [list(costs) for costs in again.scores.values()] == [list(costs) for costs in whole.scores.values()]
    # Anything that decides the scores invalidates them.
    other = copy.deepcopy(model)
    other.classifier.bias.data += 1
    seeded = replace(config, training=replace(config.training, seed=1))
    for change in ({"samples": 11}, {"model": other}, {"config": replace(config, calibration_samples=15)},
                   {"config": seeded}, {"config": replace(config, recipe=replace(EVERYTHING, name="x"))}):  # fmt: skip
        assert measure(**change)[1] == count, change
    # From the finished file too; a damaged one is none.
    sensitivity.write_result(tmp_path, whole, "tiny", {})
    assert {path.name for path in tmp_path.iterdir()} == {"sensitivity.json", "sensitivity.png"}
    assert measure() == (whole, 0)
    (tmp_path / "sensitivity.json").write_text(f'{{"fingerprint": "{whole.fingerprint}", "scores": [1]}}')
    assert measure()[1] == count


def test_scores_are_written_now_and_then(
    prepared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs, model, quantized = prepared()
    monkeypatch.setattr(scoring, "SAVE_SECONDS", -1.0)
    found = sensitivity.measure(model, quantized, config, inputs, tmp_path, 4)
    kept = json.loads((tmp_path / "sensitivity.partial.json").read_text())
    assert (
        kept["scores"]["sites"]["layer.1.gelu_out"]["logits_mse"]
        == found.scores["sites"]["layer.1.gelu_out"].logits_mse
    )


def ranked(costs: dict[str, float]) -> Sensitivity:
    sites = {key: Cost(cost, cost, -cost) for key, cost in costs.items()}
    setup = Setup("STS-B", False, "dev", 4, "", "pearson", 4, 42, "", {})
    return Sensitivity(setup, (), "", 80.0, {"sites": sites})


def test_the_most_harmful_site_is_first() -> None:
    assert ranked({"a": 0.1, "b": 0.3, "c": 0.0, "d": 0.1}).ranking == ("b", "a", "d", "c")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 110])
def test_bisection_finds_the_fewest(count: int) -> None:
    for answer in range(count + 1):
        tried: list[int] = []

        def drop(off: int, answer: int = answer, tried: list[int] = tried) -> float:
            tried.append(off)
            return 0.5 if off >= answer else 0.6

        assert fewest_off(count, drop, 0.5) == (answer if answer < count else None)
        assert len(tried) <= 2 + count.bit_length()


def test_bisection_keeps_to_the_bound_where_the_drop_goes_up_and_down() -> None:
    drops = [5.0, 3.0, 0.4, 2.0, 0.9, 1.1, 0.2, 0.1]
    found = fewest_off(len(drops), drops.__getitem__, 1.0)
    assert found is not None
    assert drops[found] <= 1.0 < drops[found - 1]


LAYERED = Recipe(
    "mine",
    "one of each: a description",
    {
        "gelu_out": QuantizerSpec(calibrator="percentile", percentile=99.9),
        "layer.1.gelu_out": QuantizerSpec(calibrator="mse"),
        "softmax_out": QuantizerSpec(calibrator="max"),
        "query.weight": QuantizerSpec(axis=0, num_bits=4, layers=(0, 1)),
        "embeddings.word": QuantizerSpec(axis=0, num_bits=2),
        "bmm_q": QuantizerSpec(enabled=False),
        "layer.0.bmm_q": QuantizerSpec(calibrator="fixed", amax=3.5),
    },
    QatSpec("lsq"),
    0.5,
)


@pytest.mark.parametrize("off", [(), ("layer.0.gelu_out",), ("layer.1.gelu_out", "embeddings.word"),
                                 ("layer.1.query.weight", "layer.0.bmm_q", "layer.0.softmax_out")])  # fmt: skip
def test_a_recipe_without_some_sites_is_read_back_as_it_was_written(
    off: tuple[str, ...], tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    sites = encoder_sites(tiny_model())
    less = recipe_without(LAYERED, sites, off, 1.0)
    before, after = (
        {site.key: spec for site in sites if (spec := recipe.spec(site))} for recipe in (LAYERED, less)
    )  # fmt: skip
    assert after == {key: spec for key, spec in before.items() if key not in off}
    assert set(off) < set(before)
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text(less), encoding="utf-8")
    assert load_recipe(str(path)) == less
    assert (less.qat, less.smoothquant) == (LAYERED.qat, LAYERED.smoothquant)
    assert (less is LAYERED) == (off == ())


def test_a_written_recipe_is_short() -> None:
    less = replace(
        LAYERED, sites={**LAYERED.sites, "layer.0.gelu_out": replace(LAYERED.sites["gelu_out"], enabled=False)}
    )
    lines = recipe_text(less).splitlines()
    assert "  layer.0.gelu_out: {enabled: false}" in lines
    assert "  embeddings.word: {num_bits: 2, axis: 0, calibrator: max}" in lines
    assert "  bmm_q: {calibrator: max, enabled: false}" in lines
    assert max(map(len, lines)) <= 130


def pearson_drop(recipe: Recipe, prepared: tuple[FinetuneConfig, Inputs, Any, Any]) -> float:
    """x100, with the recipe calibrated, through the one way to score."""
    config, inputs, model, _ = prepared
    config = replace(config, recipe=recipe)
    quantized, _ = quantize(model, config, inputs)
    return 100 * (
        evaluate_model(model, config, inputs, Precision.FP32)["dev"].metrics["pearson"]
        - evaluate_model(quantized, config, inputs, Precision.INT8)["dev"].metrics["pearson"]
    )


@pytest.fixture(scope="module")
def rough(prepared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Sensitivity, float]:
    """The setting for 2-bit weights, which cost something even on a tiny model; the costs; the drop of all sites."""
    recipe = replace(EVERYTHING, sites={
        key: replace(spec, num_bits=2 if key.endswith("weight") else 8) for key, spec in EVERYTHING.sites.items()
    })  # fmt: skip
    config, inputs, model, quantized = prepared(recipe=recipe)
    costs = sensitivity.measure(model, quantized, config, inputs, tmp_path_factory.mktemp("rough"), 16)
    return (config, inputs, model, quantized), costs, pearson_drop(recipe, (config, inputs, model, quantized))


@pytest.mark.parametrize("share", [1.01, 0.5, 0.1])
def test_the_recipe_found_meets_the_bound_and_one_site_more_does_not(
    share: float, rough: tuple[Any, Sensitivity, float]
) -> None:
    prepared, costs, everything = rough
    config, inputs, model, quantized = prepared
    assert everything > 1
    bound = share * everything
    placement = sensitivity.meet(model, copy.deepcopy(quantized), config, inputs, costs, bound)
    assert placement.drop_x100 == pytest.approx(pearson_drop(placement.recipe, prepared), abs=1e-3)
    assert placement.drop_x100 <= bound
    assert placement.off == costs.ranking[: len(placement.off)]
    assert placement.quantized + len(placement.off) == 43
    assert bool(placement.off) == (share < 1)
    if placement.off:
        one_more = recipe_without(config.recipe, encoder_sites(model), placement.off[:-1], bound)
        assert pearson_drop(one_more, prepared) > bound
    quantizers = model_quantizers(quantize(model, replace(config, recipe=placement.recipe), inputs)[0])
    assert set(quantizers) == set(costs.ranking) - set(placement.off)


def test_a_bound_that_no_site_meets_is_an_error(prepared: Callable[..., Any], tmp_path: Path) -> None:
    config, inputs, model, quantized = prepared()
    found = sensitivity.measure(model, quantized, config, inputs, tmp_path, 4)
    with pytest.raises(QuantizationError) as caught:
        sensitivity.meet(model, quantized, config, inputs, found, -50.0)
    drop = sensitivity.probe_of(quantized, inputs.dev["dev"], config, inputs).cost([found.ranking[-1]]).drop_x100
    assert str(caught.value) == (
        f"quantizing {found.ranking[-1]} alone already loses {drop:.2f} pearson x100, more than --max_drop -50; allow more"
    )


@pytest.mark.parametrize(("fresh_answer", "off"), [(2, 2), (3, 3), (4, None)])
def test_what_a_fresh_calibration_says_counts(
    fresh_answer: int, off: int | None, monkeypatch: pytest.MonkeyPatch, prepared: Callable[..., Any]
) -> None:
    config, inputs, model, quantized = prepared()
    sites = encoder_sites(model)
    found = ranked({site.key: 1.0 / (rank + 1) for rank, site in enumerate(sites[:4])})
    monkeypatch.setattr(search, "quantize", lambda *_: ("fresh", None))
    monkeypatch.setattr(search, "probe_of", lambda quantized, *_: SimpleNamespace(quantized=quantized, sites=sites))

    def drop(probes: Any, on: Any) -> float:
        answer = fresh_answer if probes[0].quantized == "fresh" else 2
        return 0.0 if 4 - len(on) >= answer else 9.0

    monkeypatch.setattr(search, "_drop", drop)
    if off is None:
        with pytest.raises(
            QuantizationError, match=r"^calibrated again, even .* alone loses more than --max_drop 1; allow"
        ):
            sensitivity.meet(model, quantized, config, inputs, found, 1.0)
    else:
        assert sensitivity.meet(model, quantized, config, inputs, found, 1.0).off == found.ranking[:off]


def test_the_worse_of_two_development_sets_counts(
    tiny_checkpoint_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(
        data=DataConfig(task="MNLI", data_dir=str(write_mnli(tmp_path / "data")), max_seq_length=32),
        training=TrainingConfig(),
        from_fp32=str(tiny_checkpoint_of("bert", 3)),
        recipe=EVERYTHING,
    )
    inputs = load_inputs(config)
    model = load_finetuned(str(config.from_fp32), config.data.resolved_task)
    quantized, _ = quantize(model, config, inputs)
    drops = {"dev_matched": 0.2, "dev_mismatched": 0.7}
    monkeypatch.setattr(Probe, "cost", lambda probe, on, _: Cost(0.0, 0.0, drops[probe.rows.split]))
    found = ranked({"layer.0.gelu_out": 1.0})
    assert sensitivity.meet(model, quantized, config, inputs, found, 0.7).drop_x100 == 0.7
    with pytest.raises(QuantizationError, match=r"alone already loses 0\.70 accuracy x100, more than --max_drop 0\.6"):
        sensitivity.meet(model, quantized, config, inputs, found, 0.6)


OPTIONS = ("--task", "STS-B", "--max_seq_length", "32", "--calibration_samples", "16", "--sensitivity")


def test_the_command(tiny_checkpoint: Path, glue: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    given = ["--model_name_or_path", str(tiny_checkpoint), "--data_dir", str(glue), *OPTIONS]
    assert run_command("calibrate", [*given, "--sensitivity_samples", "8"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    folder = tmp_path / "runs" / "sensitivity-sts-b-bert-1"
    assert {path.name for path in folder.iterdir()} == {"sensitivity.json", "sensitivity.png"}
    data = json.loads((folder / "sensitivity.json").read_text())
    assert {"command", "git_commit", "date_utc", "versions", "hardware"} <= set(data["provenance"])
    assert (data["model"], data["rows"], data["metric"], data["recipe"]["name"]) == ("bert-1", 8, "pearson", "gpu")
    assert str(tmp_path) not in json.dumps(data)
    assert list(data["scores"]) == ["everything", "names", "layers", "sites"]
    assert [len(costs) for costs in data["scores"].values()] == [1, 14, 2, 31]
    assert set(data["scores"]["sites"]["layer.1.gelu_out"]) == {"logits_mse", "logits_max_abs", "drop_x100"}
    assert "recipe gpu: 31 of 43 sites quantized" in out
    most = sorted(data["scores"]["sites"], key=lambda key: -data["scores"]["sites"][key]["logits_mse"])[:10]
    lines = [line.split() for line in out.splitlines()]
    shown = [line[0] for line in lines if line and line[0] in data["scores"]["sites"]]
    assert shown == most
    layer = data["scores"]["layers"]["1"]
    expected = [f"{layer['logits_mse']:.1e}", f"{layer['logits_max_abs']:.3f}", f"{layer['drop_x100']:+.2f}"]
    assert ["layer", "1", *expected] in lines
    facts = dict(line.split(maxsplit=1) for line in out[out.index("model  ") :].splitlines()[:5] if " " in line.strip())
    assert (facts["model"].strip(), facts["recipe"].strip()) == ("bert-1", "gpu")
    assert facts["data"].startswith("STS-B dev, 8 rows; pearson x100:")
    assert facts["device"].strip() == data["device"]
    assert data["device"].endswith(" cores")
    assert "plot:   runs/sensitivity-sts-b-bert-1/sensitivity.png" in out


def test_the_command_writes_a_recipe_that_the_command_takes(
    calibrated: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    shutil.copytree(calibrated, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    rough = tmp_path / "rough.yaml"
    rough.write_text(
        "name: rough\nweights: {axis: 0, num_bits: 2}\nsites: {query.weight: {}, key.weight: {}, gelu_out: {}}"
    )
    given = ["--recipe", "rough.yaml", "--sensitivity", "--max_drop", "5", "--write_recipe", "made/less.yaml"]
    assert run_command("calibrate", given) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "mine"
    data = json.loads((folder / "sensitivity.json").read_text())
    assert data["model"] == "bert-1"
    assert (folder / "sensitivity.png").is_file()
    less = load_recipe("made/less.yaml")
    found = data["max_drop"]
    assert Recipe.from_dict(found["recipe"]) == less
    assert less.name == "rough-max-drop-5"
    assert found["drop_x100"] <= found["max_drop_x100"] == 5
    assert found["quantized_sites"] + len(found["in_float"]) == 6
    assert 0 < len(found["in_float"]) < 6
    assert f"recipe {less.name}: {found['quantized_sites']} of 6 sites quantized; pearson x100" in out
    assert f"in float: {', '.join(found['in_float'])}" in out
    assert "\nrecipe: made/less.yaml\nnext: python calibrate.py --recipe made/less.yaml --model_name_or_path " in out
    printed = shlex.split(out.splitlines()[-1].removeprefix("next: python calibrate.py "))
    assert run_command("calibrate", [*given, "--sensitivity_samples", "8"]) == 2  # the recipe is not replaced
    assert "--write_recipe: made/less.yaml exists already" in capsys.readouterr().err
    assert run_command("calibrate", [*printed, "--output_dir", "runs/again"]) == 0
    out = capsys.readouterr().out
    assert f"recipe {less.name}: {found['quantized_sites']} of 43 sites quantized" in out
    stages = json.loads((tmp_path / "runs" / "again" / "run.json").read_text())["stages"]
    lost = 100 * (stages["fp32"]["scores"]["dev"]["pearson"] - stages["ptq"]["scores"]["dev"]["pearson"])
    assert lost == pytest.approx(found["drop_x100"], abs=1e-3)


def test_ctrl_c_says_how_to_go_on(
    tiny_checkpoint: Path, glue: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        "--model_name_or_path",
        str(tiny_checkpoint),
        "--data_dir",
        str(glue),
        "--output_dir",
        str(tmp_path),
        *OPTIONS,
    ]
    with monkeypatch.context() as patch:
        Counting(patch, 7)
        assert run_command("calibrate", given) == 130
    assert capsys.readouterr().err.startswith("calibrate: stopped after 7 of 48 scores, which are saved")
    with monkeypatch.context() as patch:
        counting = Counting(patch)
        assert run_command("calibrate", given) == 0
    assert counting.scores == 41


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--max_drop", "1"], "--max_drop and --write_recipe go together; add --write_recipe PATH"),
        (["--write_recipe", "x.yaml"], "--max_drop and --write_recipe go together; add --max_drop X"),
        (["--max_drop", "-0.5", "--write_recipe", "x.yaml"], "--max_drop -0.5, expected 0 or more (the main metric x100)"),
        (["--max_drop", "nan", "--write_recipe", "x.yaml"], "--max_drop nan, expected 0 or more"),
        (["--max_drop", "1", "--write_recipe", "."], "--write_recipe . is a folder; give the path of a file"),
        (["--max_drop", "1", "--write_recipe", "data/dev.tsv/x.yaml"], "--write_recipe data/dev.tsv/x.yaml cannot be written"),
        (["--output_dir", "data/dev.tsv"], "--output_dir data/dev.tsv/sensitivity.json cannot be written"),
        (["--sensitivity_samples", "1"], "--sensitivity_samples 1, expected 2 or more"),
        (["--recipe", "ful"], "unknown recipe 'ful' (did you mean 'full'?)"),
        (["--recipe", "far.yaml"], "recipe 'far', site 'gelu_out': layer 5, but the model's layers are 0 to 1"),
        (["--recipe", "none.yaml"], "recipe 'none' quantizes no site of this model"),
        (["--quantizer", "tensorrt"], "invalid choice: 'tensorrt'"),
    ],
)  # fmt: skip
def test_what_the_command_refuses(
    argv: list[str], says: str, refused: Refused, data: Path, tiny_checkpoint_of: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "far.yaml").write_text("name: far\nsites: {gelu_out: {layers: [5]}}")
    (tmp_path / "none.yaml").write_text("name: none\nsites: {embeddings.token_type: {}}")  # DistilBERT has none
    model = ["--model_name_or_path", str(tiny_checkpoint_of("distilbert", 1)), "--data_dir", str(data)]
    assert says in refused("calibrate", *model, *OPTIONS, *argv)


@pytest.mark.parametrize("option", ["--sensitivity_samples", "--max_drop", "--write_recipe"])
def test_options_that_need_sensitivity(option: str, refused: Refused) -> None:
    assert f"{option} needs --sensitivity" in refused("calibrate", option, "7")


def test_without_development_data(refused: Refused, data: Path, tiny_checkpoint: Path) -> None:
    (data / "dev.tsv").unlink()
    given = ["--model_name_or_path", str(tiny_checkpoint), "--data_dir", str(data), *OPTIONS]
    assert "dev.tsv" in refused("calibrate", *given)


def test_a_folder_that_may_not_be_written_to(
    refused: Refused, data: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    given = ["--model_name_or_path", str(tiny_checkpoint), "--data_dir", str(data), *OPTIONS]
    line = refused("calibrate", *given, "--max_drop", "1", "--write_recipe", "less.yaml")
    assert "--write_recipe less.yaml cannot be written: " in line
    assert line.endswith(f"no permission for {Path.cwd()}; give a path that you may write to")


def test_what_the_newest_run_was_imported_from_is_not_imported_again(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(calibrated, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    record = json.loads(Path("runs/mine/run.json").read_text())
    record["config"]["from_pytorch_quantization"] = "theirs.pth"
    Path("runs/mine/run.json").write_text(json.dumps(record))
    config = calibration_of(None, CalibrationConfig(), None, "runs", print)
    assert config.from_pytorch_quantization is None
    assert config.recipe == load_recipe("gpu")
