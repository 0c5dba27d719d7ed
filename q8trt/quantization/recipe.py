"""Recipes: frozen dataclasses that list the sites to quantize and their options. Files are YAML.

The recipes of the package are in `q8trt/recipes/*.yaml`. Users pass a name, or the path of their own file. A key under
`sites` is a site ("gelu_out"), a group of sites ("embeddings"), or one site of one layer ("layer.3.gelu_out"). The more
specific key takes precedence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Any

from q8trt.errors import ConfigError, nearest
from q8trt.files import Limits, MalformedError, parse_yaml, read_limited
from q8trt.quantization.calibrators import CALIBRATORS
from q8trt.quantization.sites import ACTIVATION, GROUPS, OUTSIDE_LAYERS, POSITION_SITES, SITE_KINDS, Site

RANGES = ("frozen", "ema", "lsq", "pact")
#: Fields of `Recipe` that smooth outlier channels of activations; each is an alpha or None.
SMOOTHINGS = ("smoothquant", "smooth_gelu", "smooth_residuals")
#: Keys that `qat: {start: ...}` and an alternative may replace.
_VARIANT_KEYS = ("activations", "weights", "sites", *SMOOTHINGS)
_KEYS = ("name", "description", *_VARIANT_KEYS, "alternatives", "float_sites", "qat")
#: Limits of a file. A recipe with every site of every layer of BERT-large has less than a fifth of them.
_LIMITS = Limits(size=2**18, depth=16, values=50_000)
_LAYER_KEY = re.compile(r"layer\.([0-9]{1,4})\.(.+)")
#: The output of softmax is between 0 and 1 for any data.
_SITE_DEFAULTS: dict[str, dict[str, Any]] = {"softmax_out": {"calibrator": "fixed", "amax": 1.0}}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class QuantizerSpec:
    """The quantization of one site: symmetric, signed, zero_point 0, scale = amax / (2^(num_bits-1) - 1).

    Attributes:
        num_bits: width of the integers; 8 for activations, 8, 4 or 2 for weights and embeddings.
        axis: None for one scale per tensor, 0 for one per output channel of a weight or row of a table.
        calibrator: a name of `q8trt.quantization.calibrators.CALIBRATORS`.
        percentile: share of magnitudes inside the range, in percent; only for the calibrator "percentile".
        amax: the range; only for the calibrator "fixed".
        enabled: False leaves the site in floating point.
        layers: numbers of the layers where the site is quantized, from 0; None for all.
    """

    num_bits: int = 8
    axis: int | None = None
    calibrator: str = "max"
    percentile: float = 99.99
    amax: float | None = None
    enabled: bool = True
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.num_bits) is not int or self.num_bits not in (8, 4, 2):
            raise ConfigError(f"num_bits must be 8, 4 or 2, got {self.num_bits!r}")
        if self.axis is not None and (self.axis != 0 or type(self.axis) is not int):
            raise ConfigError(f"axis must be null (per tensor) or 0 (per output channel), got {self.axis!r}")
        if not isinstance(self.calibrator, str) or self.calibrator not in CALIBRATORS:
            raise ConfigError(
                f"unknown calibrator {self.calibrator!r}{nearest(str(self.calibrator), CALIBRATORS)}; "
                f"known: {', '.join(CALIBRATORS)}"
            )
        if not _is_number(self.percentile) or not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile must be in (50, 100], got {self.percentile!r}")
        if self.amax is not None and (not _is_number(self.amax) or not 0 < self.amax < float("inf")):
            raise ConfigError(f"amax must be a number above 0, got {self.amax!r}")
        if (self.calibrator == "fixed") != (self.amax is not None):
            raise ConfigError("the calibrator 'fixed' needs amax, and no other calibrator reads it")
        if type(self.enabled) is not bool:
            raise ConfigError(f"enabled must be true or false, got {self.enabled!r}")
        if self.layers is not None and (
            not isinstance(self.layers, tuple) or not all(type(number) is int and number >= 0 for number in self.layers)
        ):
            raise ConfigError(f"layers must be a list of layer numbers from 0, such as [0, 1, 5], got {self.layers!r}")


@dataclass(frozen=True)
class QatSpec:
    """The treatment of amax during quantization-aware fine-tuning.

    Attributes:
        ranges: "frozen" (as calibrated), "ema" (moving average of the training batches, Q8BERT), "lsq" (the step size is
            learned, arXiv 1902.08153) or "pact" (the clipping value is learned, arXiv 1805.06085).
        ema_decay: weight of the old value in the moving average at each step.
    """

    ranges: str = "frozen"
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        if self.ranges not in RANGES:
            raise ConfigError(
                f"unknown ranges {self.ranges!r}{nearest(str(self.ranges), RANGES)}; known: {', '.join(RANGES)}"
            )
        if not _is_number(self.ema_decay) or not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay!r}")


@dataclass(frozen=True)
class FloatSites:
    """The limits within which calibration leaves operations in floating point.

    Attributes:
        max: maximum number of such operations; a GEMM with its input and weight is one.
        drift: highest drift from FP32 on held-out rows, see `Trial`, at which all operations stay in INT8.
    """

    max: int = 4
    drift: float = 0.05

    def __post_init__(self) -> None:
        if type(self.max) is not int or self.max < 1:
            raise ConfigError(f"max must be a whole number of 1 or more, got {self.max!r}")
        if not _is_number(self.drift) or not 0 <= self.drift < float("inf"):
            raise ConfigError(f"drift must be a number of 0 or more, got {self.drift!r}")


def _split(key: str) -> tuple[int | None, str]:
    """Return the layer of a recipe's key (None for all layers) and its site."""
    match = _LAYER_KEY.fullmatch(key)
    return (int(match[1]), match[2]) if match else (None, key)


@dataclass(frozen=True)
class Recipe:
    """A named placement of quantizers.

    Attributes:
        name: name of the recipe in reports and manifests.
        description: one sentence about the recipe.
        sites: name of a site, or key of a site in one layer -> its options; all other sites stay in floating point.
        qat: treatment of the ranges during QAT.
        smoothquant: SmoothQuant's alpha, the share of the difficulty that moves from activations to weights, for the
            linears after a LayerNorm; None for off.
        smooth_gelu: alpha for the linear after GELU. It applies to channels above the median; 1 gives them the median's
            range. None for off.
        smooth_residuals: alpha for residual Adds with two quantized inputs. 1 gives all channels the same range. Each Add
            needs one more multiplication. None for off.
        qat_start: recipe from which QAT starts, with the same sites; None for this recipe. In YAML it is
            ``qat: {start: {...}}`` with only the keys that differ. Calibration alone and QAT need different ranges, because
            clipping costs accuracy at once, but QAT then ends with a higher score.
        alternatives: recipes with the same sites that calibration alone also tries. It keeps the one whose answers drift
            least from floating point. If empty, calibration uses this recipe unchanged. In YAML they are a list of mappings,
            each with the keys that differ.
        float_sites: limits within which calibration leaves operations in floating point; None quantizes every site.
    """

    name: str
    description: str = ""
    sites: Mapping[str, QuantizerSpec] = field(default_factory=dict)
    qat: QatSpec = field(default_factory=QatSpec)
    smoothquant: float | None = None
    smooth_gelu: float | None = None
    smooth_residuals: float | None = None
    qat_start: Recipe | None = None
    alternatives: tuple[Recipe, ...] = ()
    float_sites: FloatSites | None = None

    def __post_init__(self) -> None:
        if not any(spec.enabled for spec in self.sites.values()):
            raise ConfigError(f"recipe {self.name!r} quantizes no site; list at least one under 'sites'")
        for option in SMOOTHINGS:
            alpha = getattr(self, option)
            if alpha is not None and (not _is_number(alpha) or not 0 <= alpha <= 1):
                raise ConfigError(f"recipe {self.name!r}: {option} must be in [0, 1], got {alpha!r}")
        for key, spec in self.sites.items():
            self._check(key, spec)

    def _check(self, key: str, spec: QuantizerSpec) -> None:
        layer, name = _split(key)
        if name not in SITE_KINDS or (layer is not None and name in OUTSIDE_LAYERS):
            known = [*SITE_KINDS, *GROUPS, "layer.N.SITE"]
            raise ConfigError(
                f"recipe {self.name!r}: unknown site {key!r}{nearest(name, known)}; known: {', '.join(known)}"
            )
        kind, where = SITE_KINDS[name], f"recipe {self.name!r}, site {key!r}"
        if kind == ACTIVATION and spec.axis is not None:
            raise ConfigError(f"{where}: activations are quantized per tensor (axis: null)")
        if kind == ACTIVATION and spec.num_bits != 8:
            raise ConfigError(
                f"{where}: activations have 8 bits, got num_bits: {spec.num_bits}; TensorRT supports no other width"
            )
        if kind != ACTIVATION and not CALIBRATORS[spec.calibrator].for_weights:
            names = " or ".join(repr(name) for name, method in CALIBRATORS.items() if method.for_weights)
            raise ConfigError(f"{where}: weights are calibrated by {names}, got {spec.calibrator!r}")
        if spec.layers is not None and (layer is not None or name in OUTSIDE_LAYERS):
            raise ConfigError(f"{where}: 'layers' is for sites that every layer has")

    @property
    def candidates(self) -> tuple[Recipe, ...]:
        """The recipe and its alternatives, all without `alternatives` and `float_sites`."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in ("name", "description", "qat", "qat_start")}
        plain = {**shared, "alternatives": (), "float_sites": None}
        return tuple(replace(each, **plain) for each in (self, *self.alternatives))

    @property
    def smooths(self) -> bool:
        """True if the recipe smooths any site."""
        return any(getattr(self, option) is not None for option in SMOOTHINGS)

    def spec(self, site: Site) -> QuantizerSpec | None:
        """Return the quantization of `site`, or None if it stays in floating point."""
        if site.key not in self.sites and site.name not in self.sites and site.name in POSITION_SITES:
            name = POSITION_SITES[site.name]
            return self.spec(replace(site, name=name))
        if site.key in self.sites:
            spec = self.sites[site.key]
            return spec if spec.enabled else None
        named = self.sites.get(site.name)
        if named is None or not named.enabled or (named.layers is not None and site.layer not in named.layers):
            return None
        return named

    def without(self, sites: Sequence[Site]) -> Recipe:
        """Return the recipe with `sites` in floating point, also in its alternatives and in `qat_start`."""
        off = {site.key: replace(spec, enabled=False, layers=None) for site in sites if (spec := self.spec(site))}
        return replace(
            self,
            sites={**self.sites, **off},
            qat_start=self.qat_start.without(sites) if self.qat_start else None,
            alternatives=tuple(each.without(sites) for each in self.alternatives),
        )

    def check_layers(self, sites: Iterable[Site]) -> None:
        """Check that the model has every layer in the recipe.

        Raises:
            ConfigError: the model lacks a layer; the message names the first one.
        """
        count = 1 + max((site.layer for site in sites if site.layer is not None), default=-1)
        for key, spec in self.sites.items():
            layer, _ = _split(key)
            for number in spec.layers or () if layer is None else (layer,):
                if number >= count:
                    raise ConfigError(
                        f"recipe {self.name!r}, site {key!r}: layer {number}, but the model's layers are 0 to {count - 1}"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON data with all options of every site, which `from_dict` reads."""
        sites = {
            key: {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(spec).items()}
            for key, spec in self.sites.items()
        }
        data: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "sites": sites,
            "qat": asdict(self.qat),
            **{option: getattr(self, option) for option in SMOOTHINGS},
        }
        if self.qat_start is not None:
            data["qat"]["start"] = _variant_dict(self.qat_start)
        if self.alternatives:
            data["alternatives"] = [_variant_dict(each) for each in self.alternatives]
        if self.float_sites is not None:
            data["float_sites"] = asdict(self.float_sites)
        return data

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe") -> Recipe:
        """Return the recipe in parsed YAML or JSON.

        Args:
            data: ``{name, description, activations, weights, sites, qat, alternatives, float_sites}`` and SMOOTHINGS;
                `activations` and `weights` are the defaults of their kind, and `sites` maps a site, group or key to the
                options that differ.
            where: name of the source in messages.

        Raises:
            ConfigError: a key, site or value is unknown or invalid.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected a mapping with 'name' and 'sites', got {type(data).__name__}")
        _check_keys(data, _KEYS, where)
        sites = data.get("sites")
        if not isinstance(data.get("name"), str) or not isinstance(sites, Mapping):
            raise ConfigError(f"{where}: expected 'name: TEXT' and 'sites: {{site: {{...}}}}'")
        if not isinstance(data.get("description", ""), str):
            raise ConfigError(f"{where}: description must be a text, got {data['description']!r}")
        qat = dict(_mapping(data.get("qat") or {}, f"{where}, qat"))
        start = qat.pop("start", None)
        alternatives = data.get("alternatives") or []
        if not isinstance(alternatives, list):
            raise ConfigError(f"{where}: alternatives must be a list of mappings, got {alternatives!r:.60}")
        float_sites = data.get("float_sites")
        plain = {key: value for key, value in data.items() if key not in ("alternatives", "float_sites")} | {"qat": qat}
        return cls(
            data["name"],
            data.get("description", ""),
            _specs(data, sites, where),
            _build(QatSpec, qat, f"{where}, qat"),
            qat_start=None if start is None else _variant(plain, start, f"{where}, qat start"),
            alternatives=tuple(
                _variant(plain, each, f"{where}, alternative {n}") for n, each in enumerate(alternatives, 1)
            ),
            float_sites=None if float_sites is None else _build(FloatSites, float_sites, f"{where}, float_sites"),
            **{option: data.get(option) for option in SMOOTHINGS},
        )


def _variant(data: Mapping[str, Any], changes: Any, where: str) -> Recipe:
    """Return the recipe in `data` with the keys of `changes` replaced."""
    _check_keys(_mapping(changes, where), _VARIANT_KEYS, where)
    variant = Recipe.from_dict({**data, **changes}, where)
    here = _specs(data, data["sites"], where)
    if [key for key in here if here[key].enabled] != [key for key in variant.sites if variant.sites[key].enabled]:
        raise ConfigError(f"{where}: the sites differ from the recipe's; leave 'sites' out, or list the same sites")
    return variant


def _variant_dict(variant: Recipe) -> dict[str, Any]:
    data = variant.to_dict()
    return {key: data[key] for key in ("sites", *SMOOTHINGS)}


def _specs(data: Mapping[str, Any], sites: Mapping[Any, Any], where: str) -> dict[str, QuantizerSpec]:
    """Return key -> specification. A group is replaced by its sites; the key of a site takes precedence over its group."""
    groups = {name: options for key, options in sites.items() for name in GROUPS.get(str(key), ())}
    by_site = {str(key): options for key, options in sites.items() if key not in GROUPS}
    options: dict[str, Mapping[str, Any]] = {}
    for key in [*groups, *(key for key in by_site if key not in groups)]:
        options[key] = {**_mapping(groups.get(key) or {}, where), **_mapping(by_site.get(key) or {}, where)}
    specs = {}
    for key, overrides in options.items():
        layer, name = _split(key)
        kind = "activations" if SITE_KINDS.get(name) == ACTIVATION else "weights"
        defaults = {**_mapping(data.get(kind) or {}, where)}
        # A calibrator in the recipe replaces a site's default. Keys of one layer inherit the options of their site.
        inherited = {} if layer is None else {k: v for k, v in options.get(name, {}).items() if k != "layers"}
        named = {**inherited, **overrides}
        if "calibrator" not in named:
            defaults |= _SITE_DEFAULTS.get(name, {})
        specs[key] = _build(QuantizerSpec, {**defaults, **named}, f"{where}, {key}")
    return specs


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping such as {{calibrator: max}}, got {value!r}")
    return value


def _check_keys(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(str(key), known)}; known: {', '.join(known)}")


def _build(kind: Any, data: Any, where: str) -> Any:
    """Return an instance of the dataclass `kind` from a mapping of its fields."""
    _check_keys(_mapping(data, where), tuple(f.name for f in fields(kind)), where)
    values = dict(data)
    if isinstance(data.get("layers"), list):
        values["layers"] = tuple(data["layers"])
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def builtin_recipes() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    folder = resources.files("q8trt") / "recipes"
    return tuple(sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_recipe(name_or_path: str) -> Recipe:
    """Return a built-in recipe by name, or a user's recipe by the path of its YAML file.

    Raises:
        ConfigError: the recipe does not exist, is not YAML, or has an unknown or invalid key or value.
    """
    try:
        data = parse_yaml(_recipe_text(name_or_path), _LIMITS)
    except MalformedError as error:
        raise ConfigError(f"recipe {name_or_path}: {error}") from None
    return Recipe.from_dict(data, f"recipe {name_or_path}")


def _recipe_text(name_or_path: str) -> bytes:
    if name_or_path in builtin_recipes():
        return (resources.files("q8trt") / "recipes" / f"{name_or_path}.yaml").read_bytes()
    try:
        return read_limited(name_or_path, _LIMITS)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"unknown recipe {name_or_path!r}{nearest(name_or_path, builtin_recipes())}; expected the path of a YAML "
            f"file or one of: {', '.join(builtin_recipes())}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"recipe {name_or_path!r} cannot be read: {error}") from None
