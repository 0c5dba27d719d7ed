"""The named places of an encoder that can carry a quantizer.

A site is a tensor of the model, by the name it has in recipes, reports and checkpoints; where it lives in a given
architecture is this table's business and nobody else's. B: batch, S: sequence, H: hidden size, A: heads, D: head size,
I: intermediate size.

    site                         tensor                                            shape
    embeddings.word              and .position, .token_type: the tables            (rows, H)
    qkv_input                    input of the Q, K and V projections, one amax     (B, S, H)
    query.weight                 and key.weight, value.weight                      (H, H)
    bmm_q                        Q, already multiplied by 1 / sqrt(D)              (B, A, S, D)
    bmm_k                        K                                                 (B, A, S, D)
    softmax_out                  attention probabilities, range fixed at 1         (B, A, S, S)
    bmm_v                        V                                                 (B, A, S, D)
    context                      input of the attention output projection          (B, S, H)
    attention_output.weight                                                        (H, H)
    attention_residual.branch    inputs of the Add: what attention computed,       (B, S, H)
    attention_residual.skip      and what went around it                           (B, S, H)
    ffn_input                    input of the first feed-forward projection        (B, S, H)
    ffn_intermediate.weight                                                        (I, H)
    gelu_out                     input of the second feed-forward projection       (B, S, I)
    ffn_output.weight                                                              (H, I)
    ffn_residual.branch          and .skip: as of attention_residual               (B, S, H)
    pooler.input, .weight        the layer over the first token                    (B, H), (H, H)
    classifier.input, .weight    the head                                          (B, H), (num_labels, H)

LayerNorm's input, softmax and GELU themselves, and the Add of the mask stay in floating point.
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
    """One place of one model.

    Attributes:
        name: the site's name in recipes, such as "gelu_out" or "query.weight".
        kind: ACTIVATION or WEIGHT.
        layer: number of the encoder layer, from 0; None for embeddings, pooler and classifier.
        module: dotted path, from the model's root, of the module that holds the quantizer.
        attribute: the quantizer's name in that module.
    """

    name: str
    kind: str
    layer: int | None
    module: str
    attribute: str

    @property
    def key(self) -> str:
        """``"layer.3.gelu_out"``, ``"embeddings.word"``: the site's name in messages, reports and checkpoints."""
        return self.name if self.layer is None else f"layer.{self.layer}.{self.name}"

    @property
    def quantizer(self) -> str:
        """Dotted path of the TensorQuantizer in a quantized model."""
        return f"{self.module}.{self.attribute}"

    @property
    def parameter(self) -> str:
        """Dotted path of the tensor that a site of kind WEIGHT quantizes."""
        return f"{self.module}.weight"


_INPUT, _WEIGHT = "input_quantizer", "weight_quantizer"


@dataclass(frozen=True)
class Layout:
    """Where one architecture keeps the modules that the sites belong to.

    `attention_residual` and `ffn_residual` are the modules in which the residual is added; "" is the layer itself.
    `embeddings`, `layers` and `pooler` are paths within the encoder (``model.bert``), or within the whole model where
    they begin with ":", as the classification head does.
    """

    embeddings: str
    token_type: bool
    layers: str
    self_attention: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_residual: str
    ffn_intermediate: str
    ffn_output: str
    ffn_residual: str
    pooler: str
    classifier: str

    def layer_sites(self) -> tuple[tuple[str, str, str, str], ...]:
        """(site, kind, module within the layer, attribute), in the order in which a layer computes."""
        return (
            ("qkv_input", ACTIVATION, self.self_attention, _INPUT),
            ("query.weight", WEIGHT, self.query, _WEIGHT),
            ("key.weight", WEIGHT, self.key, _WEIGHT),
            ("value.weight", WEIGHT, self.value, _WEIGHT),
            ("bmm_q", ACTIVATION, self.self_attention, "bmm_q_quantizer"),
            ("bmm_k", ACTIVATION, self.self_attention, "bmm_k_quantizer"),
            ("softmax_out", ACTIVATION, self.self_attention, "softmax_out_quantizer"),
            ("bmm_v", ACTIVATION, self.self_attention, "bmm_v_quantizer"),
            ("context", ACTIVATION, self.attention_output, _INPUT),
            ("attention_output.weight", WEIGHT, self.attention_output, _WEIGHT),
            ("attention_residual.branch", ACTIVATION, self.attention_residual, "attention_branch_quantizer"),
            ("attention_residual.skip", ACTIVATION, self.attention_residual, "attention_skip_quantizer"),
            ("ffn_input", ACTIVATION, self.ffn_intermediate, _INPUT),
            ("ffn_intermediate.weight", WEIGHT, self.ffn_intermediate, _WEIGHT),
            ("gelu_out", ACTIVATION, self.ffn_output, _INPUT),
            ("ffn_output.weight", WEIGHT, self.ffn_output, _WEIGHT),
            ("ffn_residual.branch", ACTIVATION, self.ffn_residual, "ffn_branch_quantizer"),
            ("ffn_residual.skip", ACTIVATION, self.ffn_residual, "ffn_skip_quantizer"),
        )

    def embedding_sites(self) -> tuple[tuple[str, str, str, str], ...]:
        """(site, kind, module within the encoder, attribute) of the embedding tables."""
        tables = ("word", "position", "token_type") if self.token_type else ("word", "position")
        return tuple(
            (f"embeddings.{table}", WEIGHT, f"{self.embeddings}.{table}_embeddings", _WEIGHT) for table in tables
        )

    def head_sites(self) -> tuple[tuple[str, str, str, str], ...]:
        """(site, kind, module within the encoder or, after ":", within the model, attribute)."""
        return tuple(
            (f"{name}.{part}", kind, module, attribute)
            for name, module in (("pooler", self.pooler), ("classifier", self.classifier))
            for part, kind, attribute in (("input", ACTIVATION, _INPUT), ("weight", WEIGHT, _WEIGHT))
        )


def _bert(pooler: str, classifier: str) -> Layout:
    return Layout(
        embeddings="embeddings",
        token_type=True,
        layers="encoder.layer",
        self_attention="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attention_output="attention.output.dense",
        attention_residual="attention.output",
        ffn_intermediate="intermediate.dense",
        ffn_output="output.dense",
        ffn_residual="output",
        pooler=pooler,
        classifier=classifier,
    )


_DISTILBERT = Layout(
    embeddings="embeddings",
    token_type=False,
    layers="transformer.layer",
    self_attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_residual="",
    ffn_intermediate="ffn.lin1",
    ffn_output="ffn.lin2",
    ffn_residual="",
    pooler=":pre_classifier",
    classifier=":classifier",
)

#: transformers' ``config.model_type`` -> layout.
LAYOUTS: dict[str, Layout] = {
    "bert": _bert("pooler.dense", ":classifier"),
    "roberta": _bert(":classifier.dense", ":classifier.out_proj"),
    "electra": _bert(":classifier.dense", ":classifier.out_proj"),
    "distilbert": _DISTILBERT,
}

_ALL = (
    *LAYOUTS["bert"].embedding_sites(),
    *LAYOUTS["bert"].layer_sites(),
    *LAYOUTS["bert"].head_sites(),
)
#: Site name -> kind, in the order of computation.
SITE_KINDS: dict[str, str] = {name: kind for name, kind, _, _ in _ALL}
#: Names that stand for several sites in a recipe.
GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for name in SITE_KINDS if name.startswith(f"{group}."))
    for group in ("embeddings", "attention_residual", "ffn_residual", "pooler", "classifier")
}
#: Sites outside the encoder layers: their key is their name.
OUTSIDE_LAYERS = frozenset(name for group in ("embeddings", "pooler", "classifier") for name in GROUPS[group])


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
    """All sites of a transformers model of the BERT family, in the order in which it computes.

    A model without a head (``BertModel``), or without a pooler, simply has fewer.

    Raises:
        CheckpointError: the architecture is not of the BERT family.
    """
    layout = layout_of(model.config)
    encoder = f"{model.base_model_prefix}." if hasattr(model, str(model.base_model_prefix)) else ""
    modules = {name for name, _ in model.named_modules()}
    count = len(list(model.get_submodule(encoder + layout.layers).children()))

    def place(prefix: str, module: str) -> str:
        return module[1:] if module.startswith(":") else f"{prefix}{module}".rstrip(".")

    sites = [Site(name, kind, None, place(encoder, m), a) for name, kind, m, a in layout.embedding_sites()]
    for number in range(count):
        prefix = f"{encoder}{layout.layers}.{number}."
        sites += [Site(name, kind, number, place(prefix, m), a) for name, kind, m, a in layout.layer_sites()]
    sites += [Site(name, kind, None, place(encoder, m), a) for name, kind, m, a in layout.head_sites()]
    return tuple(site for site in sites if site.module in modules)
