"""Which sites are quantized, and how: frozen dataclasses, written as YAML.

A recipe is data. The package's own lie in `q8trt/recipes/*.yaml`; users pass a name or the path of their own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from q8trt.errors import ConfigError, nearest
from q8trt.quantization.sites import ACTIVATION, SITE_KINDS

CALIBRATORS = ("max", "percentile")


@dataclass(frozen=True)
class QuantizerSpec:
    """How one site is quantized: symmetric, signed, zero_point 0, scale = amax / (2^(num_bits-1) - 1).

    Attributes:
        num_bits: width of the integers; 8.
        axis: None for one scale per tensor, 0 for one per output channel of a weight.
        calibrator: "max" (largest magnitude seen) or "percentile" (of a histogram of magnitudes).
        percentile: share of magnitudes kept inside the range, in percent; read by the "percentile" calibrator only.
    """

    num_bits: int = 8
    axis: int | None = None
    calibrator: str = "max"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.num_bits != 8 or type(self.num_bits) is not int:
            raise ConfigError(f"num_bits must be 8, got {self.num_bits!r}")
        if self.axis is not None and (self.axis != 0 or type(self.axis) is not int):
            raise ConfigError(f"axis must be null (per tensor) or 0 (per output channel), got {self.axis!r}")
        if self.calibrator not in CALIBRATORS:
            raise ConfigError(
                f"unknown calibrator {self.calibrator!r}{nearest(str(self.calibrator), CALIBRATORS)}; "
                f"known: {', '.join(CALIBRATORS)}"
            )
        if not isinstance(self.percentile, (int, float)) or not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile must lie in (50, 100], got {self.percentile!r}")


@dataclass(frozen=True)
class Recipe:
    """A named placement of quantizers.

    Attributes:
        name: what the recipe is called in reports and manifests.
        description: one sentence for people.
        sites: site name (see `q8trt.quantization.sites`) -> how it is quantized; sites not named stay in float.
    """

    name: str
    description: str = ""
    sites: Mapping[str, QuantizerSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sites:
            raise ConfigError(f"recipe {self.name!r} quantizes no site; list at least one under 'sites'")
        for site, spec in self.sites.items():
            if site not in SITE_KINDS:
                raise ConfigError(
                    f"recipe {self.name!r}: unknown site {site!r}{nearest(site, SITE_KINDS)}; "
                    f"known: {', '.join(SITE_KINDS)}"
                )
            if SITE_KINDS[site] == ACTIVATION and spec.axis is not None:
                raise ConfigError(
                    f"recipe {self.name!r}, site {site!r}: activations are quantized per tensor (axis: null)"
                )
            if SITE_KINDS[site] != ACTIVATION and spec.calibrator != "max":
                raise ConfigError(f"recipe {self.name!r}, site {site!r}: weights are calibrated by 'max'")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with every site's specification spelled out; `from_dict` reads it back."""
        return {
            "name": self.name,
            "description": self.description,
            "sites": {k: asdict(v) for k, v in self.sites.items()},
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe") -> Recipe:
        """Check and build a recipe from parsed YAML or JSON.

        Args:
            data: ``{name, description, activations, weights, sites}``; `activations` and `weights` are the defaults of
                their kind, `sites` maps a site to what differs from them.
            where: what to call the source in messages.

        Raises:
            ConfigError: a key, site or value that is not known.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected a mapping with 'name' and 'sites', got {type(data).__name__}")
        _check_keys(data, ("name", "description", "activations", "weights", "sites"), where)
        sites = data.get("sites")
        if not isinstance(data.get("name"), str) or not isinstance(sites, Mapping):
            raise ConfigError(f"{where}: expected 'name: TEXT' and 'sites: {{site: {{...}}}}'")
        specs = {}
        for site, overrides in sites.items():
            kind = SITE_KINDS.get(str(site))
            defaults = data.get("activations" if kind == ACTIVATION else "weights") or {}
            specs[str(site)] = _spec(
                {**_mapping(defaults, where), **_mapping(overrides or {}, where)}, f"{where}, {site}"
            )
        return cls(data["name"], str(data.get("description", "")), specs)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping such as {{calibrator: max}}, got {value!r}")
    return value


def _check_keys(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(str(key), known)}; known: {', '.join(known)}")


def _spec(data: Mapping[str, Any], where: str) -> QuantizerSpec:
    _check_keys(data, tuple(f.name for f in fields(QuantizerSpec)), where)
    try:
        return QuantizerSpec(**data)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def builtin_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with q8trt."""
    folder = resources.files("q8trt") / "recipes"
    return tuple(sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_recipe(name_or_path: str) -> Recipe:
    """Load a built-in recipe by name, or a user's by the path of its YAML file.

    Raises:
        ConfigError: no such recipe, not YAML, or a value that is not known.
    """
    if name_or_path in builtin_recipes():
        text = (resources.files("q8trt") / "recipes" / f"{name_or_path}.yaml").read_bytes()
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(
                f"unknown recipe {name_or_path!r}{nearest(name_or_path, builtin_recipes())}; expected the path of a YAML "
                f"file or one of: {', '.join(builtin_recipes())}"
            )
        text = path.read_bytes()
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {name_or_path}: not YAML: {' '.join(str(error).split())}") from None
    return Recipe.from_dict(data, f"recipe {name_or_path}")
