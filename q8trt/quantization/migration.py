"""Migration from pytorch-quantization: the `_amax` buffers of its checkpoints become the ranges of q8trt's sites.

Two kinds of checkpoint have these buffers: a model built after `quant_modules.initialize()`, whose linears are QuantLinear, and
transformers' QDQBERT (supported up to 4.40), which also quantizes the attention products and the residual Adds.

    pytorch-quantization, below encoder.layer.N                    q8trt
    attention.self.{query,key,value}._input_quantizer              qkv_input: the largest of the three
    X._weight_quantizer, X._input_quantizer                        the weight and the input site of the linear X
    attention.self.matmul_q_input_quantizer                        bmm_q, divided by sqrt(head size): see `read_amax`
    attention.self.matmul_{k,a,v}_input_quantizer                  bmm_k, softmax_out, bmm_v
    attention.output.add_{local,residual}_input_quantizer          attention_residual.branch, .skip
    output.add_{local,residual}_input_quantizer                    ffn_residual.branch, .skip

A state dict does not store the fields of a QuantDescriptor. This module assumes its defaults: 8 bits, signed, symmetric,
enabled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from q8trt import files
from q8trt.console.names import one_line
from q8trt.errors import CheckpointError, ConfigError, QuantizationError, nearest
from q8trt.quantization.architectures import QUANTIZED_TYPES, architecture_of
from q8trt.quantization.calibration import check_amax
from q8trt.quantization.insertion import insert_quantizers
from q8trt.quantization.libraries import Library
from q8trt.quantization.recipe import QuantizerSpec, Recipe
from q8trt.quantization.sites import GROUPS, SITE_KINDS, WEIGHT, Site, encoder_sites
from q8trt.quantization.weights import State, load_weights, read_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Site -> name of its quantizer in QDQBERT, in the same module, if it differs.
_QDQBERT = {
    "bmm_q": "matmul_q_input_quantizer",
    "bmm_k": "matmul_k_input_quantizer",
    "softmax_out": "matmul_a_input_quantizer",
    "bmm_v": "matmul_v_input_quantizer",
    "attention_residual.branch": "add_local_input_quantizer",
    "attention_residual.skip": "add_residual_input_quantizer",
    "ffn_residual.branch": "add_local_input_quantizer",
    "ffn_residual.skip": "add_residual_input_quantizer",
}
#: Buffers that earlier versions of transformers saved, which a model computes itself.
_OLD_BUFFERS = ("position_ids", "token_type_ids")
#: Keys under which a training script may store the state dict in its file.
_NESTED = ("state_dict", "model_state_dict", "model")


def read_state(path: str | Path, allow_pickle: bool = False) -> State:
    """Return the tensors of a checkpoint folder or file, on the CPU, without the prefix "module." of DataParallel.

    Args:
        path: a folder with model.safetensors or pytorch_model.bin, or such a file.
        allow_pickle: also read files other than safetensors (with `weights_only`). Loading a pickle can run code.

    Raises:
        CheckpointError: the file is missing, damaged, a pickle that is not allowed, or has no tensors.
    """
    path = Path(path)
    if path.is_dir():
        present = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not present:
            raise CheckpointError(f"{path} has neither model.safetensors nor pytorch_model.bin; give the file itself")
        path = present[0]
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a folder or file of pytorch-quantization")
    is_pickle = path.suffix != ".safetensors"
    data = _read_pickle(path, allow_pickle) if is_pickle else read_safetensors(path, "save it again")
    if isinstance(data, Mapping):
        data = next((data[name] for name in _NESTED if isinstance(data.get(name), Mapping)), data)
    if not isinstance(data, Mapping) or not any(isinstance(value, torch.Tensor) for value in data.values()):
        raise CheckpointError(f"{path} has no state dict; expected names and tensors, as from model.state_dict()")
    return {str(name).removeprefix("module."): value for name, value in data.items() if isinstance(value, torch.Tensor)}


def _read_pickle(path: Path, allowed: bool) -> Any:
    if not allowed:
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is loaded; allow it with --allow_pickle if you trust it, or "
            "save it as model.safetensors"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise a dozen types for a damaged file
        raise CheckpointError(
            f"{path} cannot be read: {one_line(error)[:200]}; save model.state_dict() again"
        ) from None


def read_config(folder: str | Path) -> Any:
    """Return the transformers configuration of a checkpoint folder; QDQBERT has the same fields as BERT and is read as it.

    Raises:
        CheckpointError: config.json is missing or damaged, or the model is not of the BERT family.
    """
    from transformers import AutoConfig

    path = Path(folder) / "config.json"
    try:
        data = files.read_json(path)
        kind = data.pop("model_type")
        config = AutoConfig.for_model(QUANTIZED_TYPES.get(kind, kind), **data)
    except Exception as error:  # transformers raises a dozen types for a field that it refuses
        raise CheckpointError(f"{path} cannot be read as a transformers configuration: {error}") from None
    architecture_of(config, str(folder))
    return config


def _sources(site: Site, layer: Mapping[str, Site]) -> tuple[str, ...]:
    """Return the paths of pytorch-quantization's quantizers for `site`; `layer` has the sites of its layer by name."""
    if site.name == "qkv_input":
        return tuple(f"{layer[f'{name}.weight'].module}._input_quantizer" for name in ("query", "key", "value"))
    return (f"{site.module}.{_QDQBERT.get(site.name, f'_{site.attribute}')}",)


def _left_out(site: Site, leave_out: Collection[str]) -> bool:
    group = site.name.partition(".")[0]
    return site.key in leave_out or site.name in leave_out or (group in GROUPS and group in leave_out)


def _check_leave_out(leave_out: Iterable[str], sites: Iterable[Site]) -> None:
    known = [*SITE_KINDS, *GROUPS, *(site.key for site in sites)]
    for name in leave_out:
        if name not in known:
            raise ConfigError(
                f"cannot leave out {name!r}: unknown site{nearest(name, known)}; expected a site or a group"
            )


def _range_of(site: Site, buffers: State, model: nn.Module) -> torch.Tensor:
    """Return the amax of `site`, float32: () or (out, 1), from the `buffers` of its sources."""
    channels = (model.get_parameter(site.parameter).shape[0], 1) if site.kind == WEIGHT else ()
    for name, amax in buffers.items():
        if amax.numel() != 1 and tuple(amax.shape) != channels:
            expected = f"one value or shape {channels}" if channels else "one value"
            raise QuantizationError(f"{site.key}: {name} has shape {tuple(amax.shape)}, expected {expected}")
    ranges = [amax.float().reshape(channels if amax.numel() > 1 else ()) for amax in buffers.values()]
    return ranges[0] if len(ranges) == 1 else torch.stack(ranges).amax(dim=0)


def read_amax(
    state: State, model: nn.Module, *, strict: bool = True, leave_out: Collection[str] = ()
) -> tuple[State, tuple[str, ...]]:
    """Map the quantizer buffers of a pytorch-quantization state dict to the sites of `model`.

    In pytorch-quantization, Q, K and V each have an input quantizer for the same tensor. In q8trt they share one, with the
    largest range. QDQBERT quantizes Q and then divides the scores by sqrt(D). q8trt divides Q first, so the range of `bmm_q`
    is also divided, and the integers are the same.

    Args:
        state: see `read_state`.
        model: the matching floating-point transformers model of the BERT family.
        strict: raise an error for an amax that belongs to no site; otherwise the notes name it.
        leave_out: sites, groups or keys to leave in floating point, such as those whose quantizer was disabled.

    Returns:
        site key -> amax, float32, () per tensor or (out, 1) per output channel, in the order of computation; and notes,
        sentences for the user.

    Raises:
        ConfigError: a name in `leave_out` is not a site.
        QuantizationError: there is no amax, an amax belongs to no site or has the wrong shape, only some of Q, K and V have
            one, or there is a quantizer buffer other than an amax.
    """
    sites, config = encoder_sites(model), cast(Any, model.config)
    _check_leave_out(leave_out, sites)
    buffers = {name: tensor for name, tensor in state.items() if "_quantizer." in name}
    taken: set[str] = set()
    amax: State = {}
    notes: list[str] = []
    head = int(config.hidden_size // config.num_attention_heads)
    for site in sites:
        layer = {other.name: other for other in sites if other.layer == site.layer}
        names = [f"{source}._amax" for source in _sources(site, layer)]
        sources = {name: buffers[name] for name in names if name in buffers}
        taken |= set(sources)
        if not sources or _left_out(site, leave_out):
            continue
        _check_shared(site, names, sources)
        amax[site.key] = _range_of(site, sources, model) / (math.sqrt(head) if site.name == "bmm_q" else 1)
        if len(sources) > 1 and len({float(tensor) for tensor in sources.values()}) > 1:
            ranges = ", ".join(f"{float(tensor):.4g}" for tensor in sources.values())
            notes.append(f"{site.key}: Q, K and V had input ranges {ranges}; they share the largest")
    unknown = sorted(set(buffers) - taken)
    _check_unknown(unknown, strict)
    if not amax:
        raise QuantizationError("the state dict has no _amax for a site of q8trt; calibrate the model, then save it")
    return amax, (*notes, *_summary(amax, sites, head, unknown))


def _check_shared(site: Site, names: list[str], sources: State) -> None:
    lacking = [name for name in names if name not in sources]
    if lacking:
        raise QuantizationError(
            f"{site.key}: {next(iter(sources))} exists, {lacking[0]} does not; Q, K and V share one quantizer in q8trt, so "
            f"quantize the input of all three, or leave out {site.name!r}"
        )


def _check_unknown(unknown: list[str], strict: bool) -> None:
    for name in unknown:
        if not name.endswith("._amax"):
            raise QuantizationError(
                f"{name} changes what the model computes (SmoothQuant, learned clipping), and no site of q8trt reads it; "
                "save a checkpoint without it, or calibrate its float weights with q8trt"
            )
    if unknown and strict:
        raise QuantizationError(
            f"{len(unknown)} ranges belong to no site of q8trt: {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}; strict=False ignores them"
        )


def _summary(amax: State, sites: Iterable[Site], head: int, unknown: list[str]) -> list[str]:
    notes = []
    if any(key.endswith(".bmm_q") for key in amax):
        notes.append(f"bmm_q: ranges divided by sqrt({head}), because q8trt scales Q before its quantizer")
    floating = list(dict.fromkeys(site.name for site in sites if site.key not in amax))
    if floating:
        notes.append(f"in floating point in some or all layers, because they have no range: {', '.join(floating)}")
    if unknown:
        notes.append(f"ignored, because they belong to no site: {', '.join(unknown)}")
    notes.append("assumed to be 8 bits, signed and enabled, because a state dict does not store these facts")
    return notes


def recipe_of(amax: Mapping[str, torch.Tensor], model: nn.Module, name: str) -> Recipe:
    """Return the recipe with a quantizer for each range in `amax`, per channel if the range is per channel.

    Raises:
        ConfigError: `amax` is empty.
    """
    specs: dict[str, QuantizerSpec] = {}
    sites = encoder_sites(model)
    for site_name in dict.fromkeys(site.name for site in sites):
        everywhere = [site for site in sites if site.name == site_name]
        here = [site for site in everywhere if site.key in amax]
        axes = [None if amax[site.key].numel() == 1 else 0 for site in here]
        if len(set(axes)) > 1:
            specs |= {site.key: QuantizerSpec(axis=axis) for site, axis in zip(here, axes, strict=True)}
        elif here:
            layers = None if len(here) == len(everywhere) else tuple(int(site.layer or 0) for site in here)
            specs[site_name] = QuantizerSpec(axis=axes[0], layers=layers)
    return Recipe(name, "Sites and ranges of a pytorch-quantization checkpoint.", specs)


def import_checkpoint(
    path: str | Path,
    model: PreTrainedModel | None = None,
    *,
    name: str = "pytorch-quantization",
    library: Library | None = None,
    allow_pickle: bool = False,
    strict: bool = True,
    leave_out: Collection[str] = (),
) -> tuple[PreTrainedModel, Recipe, tuple[str, ...]]:
    """Return a quantized model with the weights, sites and ranges of a checkpoint of pytorch-quantization or QDQBERT.

    Args:
        path: folder or file, see `read_state`.
        model: a float model of the same architecture and head, changed in place; None makes one from the folder's config.json.
        name: the name of the recipe.
        library: the library of the quantizers; None for ModelOpt.
        allow_pickle: see `read_state`.
        strict, leave_out: see `read_amax`.

    Returns:
        the calibrated model on its device, in evaluation mode; its recipe; notes for the user.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit.
        ConfigError: see `read_amax`.
        QuantizationError: see `read_amax`; also, a range is zero, infinite or NaN.
    """
    from transformers import AutoModelForSequenceClassification

    state = read_state(path, allow_pickle)
    if model is None:
        model = AutoModelForSequenceClassification.from_config(read_config(path), trust_remote_code=False)
    amax, notes = read_amax(state, model, strict=strict, leave_out=leave_out)
    recipe = recipe_of(amax, model, name)
    weights = {name: tensor for name, tensor in state.items() if "_quantizer." not in name}
    weights = {name: tensor for name, tensor in weights.items() if name.rpartition(".")[2] not in _OLD_BUFFERS}
    load_weights(model, weights, "the weights do not fit the model")
    quantizers = insert_quantizers(model, recipe, library)
    for key, quantizer in quantizers.items():
        quantizer.amax = amax[key].to(model.device)
    check_amax(quantizers)
    return model.eval(), recipe, notes
