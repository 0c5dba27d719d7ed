"""The sites of an encoder: named tensors that can have a quantizer.

A site has the same name in recipes, reports and checkpoints. `architectures` has the module in which each architecture
computes it. B: batch, S: sequence, H: hidden size, A: heads, D: head size, I: intermediate size, R: rows of a table of
relative positions.

    site                         tensor                                            shape
    embeddings.word              the tables of embeddings, also .position and      (rows, H)
                                 .token_type
    qkv_input                    input of the Q, K and V projections, one amax     (B, S, H)
    query.weight                 also key.weight and value.weight                  (H, H)
    bmm_q                        Q, already multiplied by 1 / sqrt(D)              (B, A, S, D)
    bmm_k                        K                                                 (B, A, S, D)
    softmax_out                  attention probabilities, range fixed at 1         (B, A, S, S)
    bmm_v                        V                                                 (B, A, S, D)
    position_key                 DeBERTa's table of positions, projected as K      (A, D, R)
    position_query               and as Q, already scaled; by default they have    (A, R, D)
                                 the options of bmm_k and bmm_q
    context                      input of the attention output projection          (B, S, H)
    attention_output.weight                                                        (H, H)
    attention_residual.branch    first input of the Add: the output of attention   (B, S, H)
    attention_residual.skip      second input of the Add: the input of attention   (B, S, H)
    ffn_input                    input of the first feed-forward projection        (B, S, H)
    ffn_intermediate.weight                                                        (I, H)
    gelu_out                     input of the second feed-forward projection       (B, S, I)
    ffn_output.weight                                                              (H, I)
    ffn_residual.branch, .skip   inputs of the Add after the feed-forward network  (B, S, H)
    pooler.input, .weight        the layer over the first token                    (B, H), (H, H)
    classifier.input, .weight    the head; a token head has the input (B, S, H)    (B, H), (num_labels, H)

The input of LayerNorm, softmax, GELU and the Add of the mask stay in floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from q8trt.quantization.architectures import architecture_of

if TYPE_CHECKING:
    from torch import nn

ACTIVATION = "activation"
WEIGHT = "weight"


@dataclass(frozen=True)
class Site:
    """A site of a model.

    Attributes:
        name: the site's name in recipes, such as "gelu_out" or "query.weight".
        kind: ACTIVATION or WEIGHT.
        layer: number of the encoder layer, from 0; None for embeddings, pooler and classifier.
        module: dotted path, from the model's root, of the module with the quantizer.
        attribute: the quantizer's name in that module.
    """

    name: str
    kind: str
    layer: int | None
    module: str
    attribute: str

    @property
    def key(self) -> str:
        """The site's name in messages, reports and checkpoints, such as ``"layer.3.gelu_out"`` or ``"embeddings.word"``."""
        return self.name if self.layer is None else f"layer.{self.layer}.{self.name}"

    @property
    def quantizer(self) -> str:
        """Dotted path of the TensorQuantizer in a quantized model."""
        return f"{self.module}.{self.attribute}"

    @property
    def parameter(self) -> str:
        """Dotted path of the tensor of a site of kind WEIGHT."""
        return f"{self.module}.weight"


_INPUT, _WEIGHT = "input_quantizer", "weight_quantizer"


class _Row(NamedTuple):
    """A row of the tables below: the field of `Architecture` that names the module, and the quantizer's name in it."""

    site: str
    kind: str
    module: str
    attribute: str


_EMBEDDINGS = (
    _Row("embeddings.word", WEIGHT, "word_embeddings", _WEIGHT),
    _Row("embeddings.position", WEIGHT, "position_embeddings", _WEIGHT),
    _Row("embeddings.token_type", WEIGHT, "token_type_embeddings", _WEIGHT),
)
#: Sites of a layer in the order of computation.
_LAYER = (
    _Row("qkv_input", ACTIVATION, "self_attention", _INPUT),
    _Row("query.weight", WEIGHT, "query", _WEIGHT),
    _Row("key.weight", WEIGHT, "key", _WEIGHT),
    _Row("value.weight", WEIGHT, "value", _WEIGHT),
    _Row("bmm_q", ACTIVATION, "self_attention", "bmm_q_quantizer"),
    _Row("bmm_k", ACTIVATION, "self_attention", "bmm_k_quantizer"),
    _Row("position_key", ACTIVATION, "position_attention", "position_key_quantizer"),
    _Row("position_query", ACTIVATION, "position_attention", "position_query_quantizer"),
    _Row("softmax_out", ACTIVATION, "self_attention", "softmax_out_quantizer"),
    _Row("bmm_v", ACTIVATION, "self_attention", "bmm_v_quantizer"),
    _Row("context", ACTIVATION, "attention_output", _INPUT),
    _Row("attention_output.weight", WEIGHT, "attention_output", _WEIGHT),
    _Row("attention_residual.branch", ACTIVATION, "attention_residual", "attention_branch_quantizer"),
    _Row("attention_residual.skip", ACTIVATION, "attention_residual", "attention_skip_quantizer"),
    _Row("ffn_input", ACTIVATION, "ffn_intermediate", _INPUT),
    _Row("ffn_intermediate.weight", WEIGHT, "ffn_intermediate", _WEIGHT),
    _Row("gelu_out", ACTIVATION, "ffn_output", _INPUT),
    _Row("ffn_output.weight", WEIGHT, "ffn_output", _WEIGHT),
    _Row("ffn_residual.branch", ACTIVATION, "ffn_residual", "ffn_branch_quantizer"),
    _Row("ffn_residual.skip", ACTIVATION, "ffn_residual", "ffn_skip_quantizer"),
)
_POOLER = (_Row("pooler.input", ACTIVATION, "pooler", _INPUT), _Row("pooler.weight", WEIGHT, "pooler", _WEIGHT))
_CLASSIFIER = (
    _Row("classifier.input", ACTIVATION, "classifier", _INPUT),
    _Row("classifier.weight", WEIGHT, "classifier", _WEIGHT),
)

#: Site name -> kind, in the order of computation.
SITE_KINDS: dict[str, str] = {row.site: row.kind for row in (*_EMBEDDINGS, *_LAYER, *_POOLER, *_CLASSIFIER)}
#: Name of a group of sites in a recipe -> the sites.
GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for name in SITE_KINDS if name.startswith(f"{group}."))
    for group in ("embeddings", "attention_residual", "ffn_residual", "pooler", "classifier")
}
#: Sites of tables that depend only on parameters -> the site whose options are their default.
POSITION_SITES = {"position_key": "bmm_k", "position_query": "bmm_q"}
#: Sites outside the encoder layers, whose key is their name.
OUTSIDE_LAYERS = frozenset(row.site for row in (*_EMBEDDINGS, *_POOLER, *_CLASSIFIER))


#: Names of the last linear layer of heads that answer each token, the same for all architectures of transformers.
_TOKEN_HEADS = ("classifier", "qa_outputs")


def classifier_of(model: Any) -> str | None:
    """Return the path of the last linear layer of a transformers model's head; None for a model without a head."""
    paths = (architecture_of(model.config).classifier, *_TOKEN_HEADS)
    modules = dict(model.named_modules())
    return next((path for path in paths if hasattr(modules.get(path), "weight")), None)


def encoder_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return all sites of a transformers model of the BERT family, in the order of computation.

    A model without a head (``BertModel``) or without a pooler has fewer sites.

    Raises:
        CheckpointError: the architecture is not of the BERT family.
    """
    architecture, classifier = architecture_of(model.config), classifier_of(model)
    encoder = f"{model.base_model_prefix}." if hasattr(model, str(model.base_model_prefix)) else ""
    layers = f"{encoder}{architecture.layers}."
    count = len(list(model.get_submodule(layers[:-1]).children()))
    groups = [
        (_EMBEDDINGS, encoder, None),
        *((_LAYER, f"{layers}{number}.", number) for number in range(count)),
        (_POOLER, encoder if architecture.pooler_in_encoder else "", None),
        (_CLASSIFIER, "", None),
    ]
    modules = dict(model.named_modules())
    sites = []
    for rows, prefix, layer in groups:
        for row in rows:
            path = classifier if row.module == "classifier" else getattr(architecture, row.module)
            if path is not None and (name := f"{prefix}{path}".rstrip(".")) in modules:
                sites.append(Site(row.site, row.kind, layer, name, row.attribute))
    return tuple(sites)
