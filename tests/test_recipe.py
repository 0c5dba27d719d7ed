"""Recipes: what is read, what is refused and in which words."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from q8trt.errors import ConfigError
from q8trt.quantization.recipe import QuantizerSpec, Recipe, builtin_recipes, load_recipe
from q8trt.quantization.sites import ACTIVATION, GROUPS, OUTSIDE_LAYERS, SITE_KINDS, Site

GOOD: dict[str, Any] = {
    "name": "mine",
    "description": "two sites",
    "activations": {"calibrator": "percentile", "percentile": 99.9},
    "weights": {"axis": 0},
    "sites": {"gelu_out": {"percentile": 99}, "ffn_output.weight": None},
}


def changed(*path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value replaced or added."""
    data = copy.deepcopy(GOOD)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


def test_linear_is_built_in() -> None:
    assert "linear" in builtin_recipes()
    recipe = load_recipe("linear")
    assert recipe.name == "linear"
    assert recipe.description
    assert len(recipe.sites) == 10
    for site, spec in recipe.sites.items():
        weight = site.endswith(".weight")
        expected = QuantizerSpec(8, 0, "max") if weight else QuantizerSpec(8, None, "mse")
        assert spec == expected, site


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_builtin_loads_under_its_own_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_a_users_file_takes_defaults_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\n"
        "activations: {calibrator: percentile, percentile: 99.9}\n"
        "weights: {axis: 0}\n"
        "sites:\n"
        "  gelu_out: {percentile: 99}\n"
        "  context:\n"
        "  ffn_output.weight: {axis: null}\n"
    )
    recipe = load_recipe(str(path))
    assert recipe.sites == {
        "gelu_out": QuantizerSpec(calibrator="percentile", percentile=99),
        "context": QuantizerSpec(calibrator="percentile", percentile=99.9),
        "ffn_output.weight": QuantizerSpec(axis=None),
    }


@pytest.mark.parametrize("recipe", [*map(load_recipe, builtin_recipes()), Recipe.from_dict(GOOD)], ids=lambda r: r.name)
def test_round_trip_through_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe.from_dict(GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.sites["gelu_out"].num_bits = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed("sites", "gelu_ot", value={}), ["unknown site 'gelu_ot'", "did you mean 'gelu_out'?", "qkv_input"]),
        (changed("sites", 3, value={}), ["unknown site '3'"]),  # type: ignore[arg-type]
        (changed("activation", value={}), ["unknown key 'activation'", "did you mean 'activations'?"]),
        (changed("sites", "gelu_out", value={"bits": 8}), ["gelu_out", "unknown key 'bits'", "num_bits"]),
        (changed("weights", value={"axes": 0}), ["ffn_output.weight", "unknown key 'axes'", "did you mean 'axis'?"]),
        (changed("sites", "gelu_out", value={"axis": 0}), ["'gelu_out'", "per tensor"]),
        (changed("sites", "ffn_output.weight", value={"axis": 1}), ["ffn_output.weight", "axis must be", "got 1"]),
        (
            changed("weights", value={"calibrator": "percentile"}),
            ["'ffn_output.weight'", "'max' or 'mse', got 'percentile'"],
        ),
        (
            changed("sites", "gelu_out", value={"num_bits": 4}),
            ["'gelu_out'", "activations have 8 bits, got num_bits: 4"],
        ),
        (changed("sites", "gelu_out", value={"num_bits": "8"}), ["num_bits must be 8, 4 or 2, got '8'"]),
        (changed("sites", "gelu_out", value={"num_bits": 8.0}), ["num_bits must be 8, 4 or 2, got 8.0"]),
        (changed("weights", value={"num_bits": 3}), ["ffn_output.weight", "num_bits must be 8, 4 or 2, got 3"]),
        (changed("sites", "gelu_out", value={"enabled": 1}), ["enabled must be true or false, got 1"]),
        (changed("sites", "gelu_out", value={"layers": 3}), ["layers must be a list of layer numbers", "got 3"]),
        (changed("sites", "gelu_out", value={"layers": [0, -1]}), ["layers must be a list", "got (0, -1)"]),
        (
            changed("sites", "embeddings", value={"layers": [0]}),
            ["'embeddings.word'", "'layers' is for sites that every"],
        ),
        (changed("sites", "layer.1.context", value={"layers": [1]}), ["'layer.1.context'", "'layers' is for sites"]),
        (changed("sites", "layer.0.embeddings.word", value={}), ["unknown site 'layer.0.embeddings.word'"]),
        (changed("sites", "layer.x.context", value={}), ["unknown site 'layer.x.context'"]),
        (changed("sites", "bmm_q", value={"calibrator": "fixed"}), ["bmm_q", "'fixed' needs amax"]),
        (changed("sites", "bmm_q", value={"amax": 1.0}), ["bmm_q", "no other calibrator reads it"]),
        (changed("sites", "bmm_q", value={"calibrator": "fixed", "amax": 0}), ["amax must be a number above 0, got 0"]),
        (changed("qat", value={"ranges": "learned"}), ["qat", "unknown ranges 'learned'", "frozen, ema, lsq, pact"]),
        (changed("qat", value={"ema_decay": 1}), ["ema_decay must be in [0, 1), got 1"]),
        (changed("qat", value={"decay": 0.9}), ["qat", "unknown key 'decay'", "ema_decay"]),
        (changed("qat", value="ema"), ["expected a mapping", "got 'ema'"]),
        (changed("smoothquant", value=1.5), ["smoothquant must be in [0, 1], got 1.5"]),
        (changed("smooth_residuals", value=-0.1), ["smooth_residuals must be in [0, 1], got -0.1"]),
        (changed("smoothquant", value=True), ["smoothquant must be in [0, 1], got True"]),
        (changed("sites", value={"gelu_out": {"enabled": False}}), ["'mine' quantizes no site"]),
        (
            changed("sites", "gelu_out", value={"calibrator": "percent"}),
            ["unknown calibrator 'percent'", "did you mean 'percentile'?", "max, percentile"],
        ),
        (changed("sites", "gelu_out", value={"calibrator": 7}), ["unknown calibrator 7"]),
        (changed("sites", "gelu_out", value={"calibrator": ["max"]}), ["unknown calibrator ['max']"]),
        (changed("sites", "gelu_out", value={"percentile": 50}), ["percentile must be in (50, 100], got 50"]),
        (changed("sites", "gelu_out", value={"percentile": 100.1}), ["(50, 100], got 100.1"]),
        (changed("sites", "gelu_out", value={"percentile": "99.9"}), ["(50, 100], got '99.9'"]),
        (changed("sites", "gelu_out", value={"percentile": None}), ["(50, 100], got None"]),
        (changed("sites", "gelu_out", value={"percentile": float("nan")}), ["(50, 100], got nan"]),
        (changed("sites", "gelu_out", value={"percentile": True}), ["(50, 100], got True"]),
        (changed("sites", "ffn_output.weight", value={"axis": False}), ["axis must be", "got False"]),
        (changed("sites", "gelu_out", value="max"), ["expected a mapping", "got 'max'"]),
        (changed("weights", value=[8]), ["expected a mapping", "got [8]"]),
        (changed("sites", value={}), ["'mine' quantizes no site"]),
        (changed("sites", value=["gelu_out"]), ["expected 'name: TEXT'", "sites: {site"]),
        (changed("name", value=None), ["expected 'name: TEXT'"]),
        ({"name": "mine"}, ["expected 'name: TEXT'"]),
        (["gelu_out"], ["expected a mapping", "got list"]),
        (None, ["expected a mapping", "got NoneType"]),
    ],
)
def test_refused(data: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.from_dict(data, "recipe mine.yaml")
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize("percentile", [50.001, 99, 100])
def test_percentiles_at_the_ends_of_the_range(percentile: float) -> None:
    assert QuantizerSpec(calibrator="percentile", percentile=percentile).percentile == percentile


@pytest.mark.parametrize("key", ["layer.\u0663.gelu_out", f"layer.{'9' * 5000}.gelu_out"])
def test_the_number_of_a_layer_has_plain_digits(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown site"):
        Recipe.from_dict({"name": "x", "sites": {key: {}}})


def test_a_description_is_a_text() -> None:
    with pytest.raises(ConfigError, match=r"description must be a text, got \['a'\]"):
        Recipe.from_dict({"name": "x", "description": ["a"], "sites": {"gelu_out": {}}})


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown recipe 'linaer' \(did you mean 'linear'\?\); expected the path"):
        load_recipe("linaer")
    with pytest.raises(ConfigError, match="cannot be read: it is not a regular file"):
        load_recipe(str(tmp_path))  # a folder


@pytest.mark.parametrize("text", [b"name: [unclosed\nsites: {", b"name: \xff\xfe", b"\x00"])
def test_a_file_that_is_not_yaml(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML: ") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_yaml_tags(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("")
    with pytest.raises(ConfigError, match="expected a mapping with 'name' and 'sites', got NoneType"):
        load_recipe(str(path))
    path.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="not YAML"):
        load_recipe(str(path))


def test_a_group_stands_for_its_sites_and_what_names_one_wins() -> None:
    for order in (("embeddings", "embeddings.word"), ("embeddings.word", "embeddings")):
        options = {"embeddings": {"num_bits": 4, "axis": 0}, "embeddings.word": {"num_bits": 2}}
        recipe = Recipe.from_dict({"name": "mine", "sites": {key: options[key] for key in order}})
        assert recipe.sites == {
            "embeddings.word": QuantizerSpec(num_bits=2, axis=0),
            "embeddings.position": QuantizerSpec(num_bits=4, axis=0),
            "embeddings.token_type": QuantizerSpec(num_bits=4, axis=0),
        }


def test_a_layer_of_its_own_inherits_from_its_site() -> None:
    sites = {"gelu_out": {"calibrator": "mse", "layers": [0, 1]}, "layer.1.gelu_out": {"percentile": 99.0}}
    recipe = Recipe.from_dict({"name": "mine", "sites": sites})
    assert recipe.sites["layer.1.gelu_out"] == QuantizerSpec(calibrator="mse", percentile=99.0)

    def spec(layer: int) -> QuantizerSpec | None:
        return recipe.spec(Site("gelu_out", ACTIVATION, layer, "module", "input_quantizer"))

    assert [spec(0), spec(2)] == [recipe.sites["gelu_out"], None]
    assert spec(1) == recipe.sites["layer.1.gelu_out"]


def test_softmax_has_a_fixed_range_unless_the_recipe_says_otherwise() -> None:
    data = {"name": "mine", "activations": {"calibrator": "percentile"}, "sites": {"softmax_out": {}, "bmm_v": {}}}
    sites = Recipe.from_dict(data).sites
    assert sites["softmax_out"] == QuantizerSpec(calibrator="fixed", amax=1.0)
    assert sites["bmm_v"].calibrator == "percentile"
    data["sites"]["softmax_out"] = {"calibrator": "max"}  # type: ignore[index]
    assert Recipe.from_dict(data).sites["softmax_out"] == QuantizerSpec(calibrator="max")


#: What the issue asks of each built-in recipe.
PLACEMENTS = {
    "linear": [name for name in SITE_KINDS if name.endswith(".weight") and name not in OUTSIDE_LAYERS]
    + ["qkv_input", "context", "ffn_input", "gelu_out"],
}
PLACEMENTS["attention"] = PLACEMENTS["linear"] + ["bmm_q", "bmm_k", "softmax_out", "bmm_v"]
PLACEMENTS["gpu"] = [*PLACEMENTS["attention"], *GROUPS["embeddings"]]
PLACEMENTS["full"] = PLACEMENTS["gpu"] + [
    name for group in ("attention_residual", "ffn_residual") for name in GROUPS[group]
]
PLACEMENTS["q8bert"] = PLACEMENTS["linear"] + [
    name for group in ("embeddings", "pooler", "classifier") for name in GROUPS[group]
]


@pytest.mark.parametrize("name", PLACEMENTS)
def test_placement_of_the_builtin_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert sorted(recipe.sites) == sorted(PLACEMENTS[name])
    weights = [spec for site, spec in recipe.sites.items() if SITE_KINDS[site] != ACTIVATION]
    assert {spec.axis for spec in weights} == {None if name == "q8bert" else 0}
    if name == "q8bert":
        activations = [spec.calibrator for site, spec in recipe.sites.items() if SITE_KINDS[site] == ACTIVATION]
        assert set(activations) == {"ema"}
        assert recipe.qat.ranges == "ema"


# What QAT starts from


def test_qat_may_start_from_other_ranges_of_the_same_sites() -> None:
    start = {"activations": {"calibrator": "max"}, "smoothquant": 0.25}
    recipe = Recipe.from_dict({**GOOD, "qat": {"ranges": "lsq", "start": start}})
    assert recipe.qat.ranges == "lsq"
    made = recipe.qat_start
    assert made is not None
    assert (made.name, made.qat, made.smoothquant, made.qat_start) == ("mine", recipe.qat, 0.25, None)
    assert list(made.sites) == list(recipe.sites)
    assert recipe.sites["gelu_out"].calibrator == "percentile"
    assert made.sites["gelu_out"].calibrator == "max"
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_full_is_smoothed_for_calibration_and_clipped_for_qat() -> None:
    recipe = load_recipe("full")
    assert recipe.qat_start is not None
    assert (recipe.smoothquant, recipe.qat_start.smoothquant) == (0.5, None)
    assert (recipe.smooth_gelu, recipe.qat_start.smooth_gelu) == (0.75, None)
    assert recipe.smooth_residuals == recipe.qat_start.smooth_residuals == 0.75
    assert (recipe.sites["gelu_out"].calibrator, recipe.qat_start.sites["gelu_out"].calibrator) == ("mse", "percentile")
    for part in (recipe, recipe.qat_start):
        assert part.sites["ffn_residual.skip"].calibrator == "mse"
        assert part.sites["softmax_out"].amax == 1.0


def test_gpu_is_full_without_the_residual_adds() -> None:
    gpu, full = load_recipe("gpu"), load_recipe("full")
    assert gpu.qat_start is not None
    assert full.qat_start is not None
    for small, large in ((gpu, full), (gpu.qat_start, full.qat_start)):
        assert {site: large.sites[site] for site in small.sites} == small.sites
        assert (small.qat, small.smoothquant, small.smooth_residuals) == (large.qat, large.smoothquant, None)


def test_alternatives_are_the_recipe_with_other_keys() -> None:
    percentile = {"activations": {"calibrator": "percentile", "percentile": 99.8}}
    plain = {**GOOD, "sites": {"gelu_out": None, "context": {"percentile": 99}}}
    recipe = Recipe.from_dict({**plain, "smoothquant": 0.5, "alternatives": [{"smoothquant": None}, percentile]})
    assert [each.smoothquant for each in recipe.candidates] == [0.5, None, 0.5]
    assert [each.sites["gelu_out"].percentile for each in recipe.candidates] == [99.9, 99.9, 99.8]
    assert [each.sites["context"].percentile for each in recipe.candidates] == [99, 99, 99], (
        "what a site names is obeyed"
    )
    assert {each.name for each in recipe.candidates} == {"mine"}
    assert all(each.alternatives == () for each in recipe.candidates)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Recipe.from_dict(GOOD).candidates == (Recipe.from_dict(GOOD),)


@pytest.mark.parametrize("name", builtin_recipes())
def test_packaged_recipes_choose_and_leave_qat_its_own_start(name: str) -> None:
    recipe = load_recipe(name)
    assert (name == "q8bert") == (recipe.alternatives == ())
    for candidate in recipe.candidates:
        assert candidate.qat_start == recipe.qat_start
        if name != "q8bert":
            assert candidate.qat_start is not None
            assert candidate.qat_start.sites["gelu_out"].percentile == 99.99
            assert (candidate.qat_start.smoothquant, candidate.qat_start.smooth_gelu) == (None, None)


@pytest.mark.parametrize(
    ("alternatives", "message"),
    [
        ({"smoothquant": None}, r"recipe: alternatives must be a list of mappings, got \{'smoothquant': None\}"),
        ([{"smoothquant": 3}], r"smoothquant must be in \[0, 1\], got 3"),
        ([{}, {"sites": {"gelu_out": None}}], "recipe, alternative 2: the sites differ from the recipe's"),
        ([{"qat": {}}], "recipe, alternative 1: unknown key 'qat'"),
    ],
)
def test_alternatives_that_do_not_fit_are_refused(alternatives: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({**GOOD, "alternatives": alternatives})


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"name": "x"}, "recipe, qat start: unknown key 'name'; known: activations, weights, sites, smoothquant"),
        ([], r"recipe, qat start: expected a mapping such as \{calibrator: max\}, got \[\]"),
        ({"sites": {"gelu_out": None}}, "recipe, qat start: the sites differ from the recipe's; leave 'sites' out"),
        ({"smoothquant": 2}, r"smoothquant must be in \[0, 1\], got 2"),
    ],
)  # fmt: skip
def test_a_start_that_does_not_fit_is_refused(start: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({**GOOD, "qat": {"start": start}})
