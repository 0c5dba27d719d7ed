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
from q8trt.quantization.sites import SITE_KINDS

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
    assert set(recipe.sites) == set(SITE_KINDS)
    for site, spec in recipe.sites.items():
        weight = site.endswith(".weight")
        expected = QuantizerSpec(8, 0, "max") if weight else QuantizerSpec(8, None, "percentile", 99.99)
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


@pytest.mark.parametrize("recipe", [load_recipe("linear"), Recipe.from_dict(GOOD)], ids=["linear", "mine"])
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
        (changed("weights", value={"calibrator": "percentile"}), ["'ffn_output.weight'", "'max'"]),
        (changed("sites", "gelu_out", value={"num_bits": 4}), ["gelu_out", "num_bits must be 8, got 4"]),
        (changed("sites", "gelu_out", value={"num_bits": "8"}), ["num_bits must be 8, got '8'"]),
        (changed("sites", "gelu_out", value={"num_bits": 8.0}), ["num_bits must be 8, got 8.0"]),
        (
            changed("sites", "gelu_out", value={"calibrator": "percent"}),
            ["unknown calibrator 'percent'", "did you mean 'percentile'?", "max, percentile"],
        ),
        (changed("sites", "gelu_out", value={"calibrator": 7}), ["unknown calibrator 7"]),
        (changed("sites", "gelu_out", value={"calibrator": ["max"]}), ["unknown calibrator ['max']"]),
        (changed("sites", "gelu_out", value={"percentile": 50}), ["percentile must lie in (50, 100], got 50"]),
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


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown recipe 'linaer' \(did you mean 'linear'\?\); expected the path"):
        load_recipe("linaer")
    with pytest.raises(ConfigError, match="unknown recipe"):
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
