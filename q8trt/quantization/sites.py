"""The named places of an encoder that can carry a quantizer.

A site is a tensor of one encoder layer, by the name it has in recipes, reports and checkpoints; where it lives in a
given architecture is this table's business and nobody else's.

    site                     tensor                                         shape
    qkv_input                input of the Q, K and V projections, one amax  (batch, sequence, hidden)
    query.weight             and key.weight, value.weight                   (hidden, hidden)
    context                  input of the attention output projection       (batch, sequence, hidden)
    attention_output.weight                                                 (hidden, hidden)
    ffn_input                input of the first feed-forward projection     (batch, sequence, hidden)
    ffn_intermediate.weight                                                 (intermediate, hidden)
    gelu_out                 input of the second feed-forward projection    (batch, sequence, intermediate)
    ffn_output.weight                                                       (hidden, intermediate)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q8trt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

ACTIVATION = "activation"
WEIGHT = "weight"


@dataclass(frozen=True)
class Site:
    """One place of one layer.

    Attributes:
        name: the site's name in recipes, such as "gelu_out" or "query.weight".
        kind: ACTIVATION or WEIGHT.
        layer: number of the encoder layer, from 0.
        module: dotted path, from the model's root, of the module whose input (or weight) the site is.
    """

    name: str
    kind: str
    layer: int
    module: str

    @property
    def key(self) -> str:
        """``"layer.3.gelu_out"``: the site's name in messages, reports and checkpoints."""
        return f"layer.{self.layer}.{self.name}"

    @property
    def quantizer(self) -> str:
        """Dotted path of the TensorQuantizer in a quantized model."""
        return f"{self.module}.{'input' if self.kind == ACTIVATION else 'weight'}_quantizer"


@dataclass(frozen=True)
class Layout:
    """Where one architecture keeps its encoder layers and, inside a layer, the modules that the sites belong to."""

    layers: str
    self_attention: str
    query: str
    key: str
    value: str
    attention_output: str
    ffn_intermediate: str
    ffn_output: str

    def modules(self) -> tuple[tuple[str, str, str], ...]:
        """(site name, kind, module within the layer), in the order in which a layer computes."""
        return (
            ("qkv_input", ACTIVATION, self.self_attention),
            ("query.weight", WEIGHT, self.query),
            ("key.weight", WEIGHT, self.key),
            ("value.weight", WEIGHT, self.value),
            ("context", ACTIVATION, self.attention_output),
            ("attention_output.weight", WEIGHT, self.attention_output),
            ("ffn_input", ACTIVATION, self.ffn_intermediate),
            ("ffn_intermediate.weight", WEIGHT, self.ffn_intermediate),
            ("gelu_out", ACTIVATION, self.ffn_output),
            ("ffn_output.weight", WEIGHT, self.ffn_output),
        )


_BERT = Layout(
    layers="encoder.layer",
    self_attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    ffn_intermediate="intermediate.dense",
    ffn_output="output.dense",
)
_DISTILBERT = Layout(
    layers="transformer.layer",
    self_attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    ffn_intermediate="ffn.lin1",
    ffn_output="ffn.lin2",
)

#: transformers' ``config.model_type`` -> layout.
LAYOUTS: dict[str, Layout] = {"bert": _BERT, "roberta": _BERT, "electra": _BERT, "distilbert": _DISTILBERT}

SITE_KINDS: dict[str, str] = {name: kind for name, kind, _ in _BERT.modules()}


def layout_of(config: Any, where: str = "the model") -> Layout:
    """The layout for a transformers configuration.

    Raises:
        CheckpointError: the architecture is not of the BERT family.
    """
    model_type = getattr(config, "model_type", None)
    if model_type not in LAYOUTS:
        raise CheckpointError(
            f"{where} is of type {model_type!r}, not BERT-like; q8trt quantizes {', '.join(LAYOUTS)}: "
            "give --model_name_or_path one of those"
        )
    return LAYOUTS[model_type]


def encoder_sites(model: nn.Module) -> tuple[Site, ...]:
    """All sites of a transformers model of the BERT family, layer by layer.

    Raises:
        CheckpointError: the architecture is not of the BERT family.
    """
    layout = layout_of(model.config)
    prefix = f"{model.base_model_prefix}." if hasattr(model, str(model.base_model_prefix)) else ""
    layers = model.get_submodule(prefix + layout.layers)
    return tuple(
        Site(name, kind, number, f"{prefix}{layout.layers}.{number}.{module}")
        for number in range(len(list(layers.children())))
        for name, kind, module in layout.modules()
    )
