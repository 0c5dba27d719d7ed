"""The architectures that q8trt quantizes, one entry each with all differences between them.

A new architecture needs an entry here, a tiny configuration in tests/conftest.py and a row in docs/architectures.md. It also
needs a class in `q8trt.quantization.layers` if it adds its residuals in a new way, or computes attention without transformers'
registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from q8trt.errors import CheckpointError


class Requirement(NamedTuple):
    """The values of a field of config.json that q8trt can run.

    Attributes:
        default: transformers' value if the field is missing.
        values: the values that q8trt can run; if they are a range, the default is also allowed.
        reason: the rest of the message "FIELD is VALUE: ...".
    """

    default: Any
    values: tuple[Any, ...] | range
    reason: str


@dataclass(frozen=True)
class Architecture:
    """An architecture of transformers.

    Paths of modules are relative to a layer, unless an attribute names another module. None for a module means that the
    architecture has no such module.

    Attributes:
        model_type: transformers' name, ``config.model_type``.
        label: the name in messages.
        embeddings: the module that computes the first hidden states; this path, the three tables and `layers` are relative
            to the encoder (``model.bert``).
        word_embeddings: the table of tokens.
        position_embeddings: the table of positions, or None.
        token_type_embeddings: the table of token types, or None.
        layers: the list of encoder layers.
        self_attention: the module that calls transformers' attention function; "" is the layer itself.
        query: the projection of Q, or of Q, K and V if `key` and `value` are None.
        key, value: the projections of K and V, or None.
        attention_dropout: the dropout of the attention probabilities; None if it is a number in the self-attention.
        attention_output: the projection after attention.
        attention_residual: the module that adds the output of attention to the residual.
        ffn_intermediate: the first feed-forward projection.
        ffn_output: the second feed-forward projection.
        ffn_residual: the module that adds the output of the feed-forward network to the residual.
        attention_residual_class: the class of `q8trt.quantization.modules` for `attention_residual`.
        ffn_residual_class: the class for `ffn_residual`.
        attention_class: the class for `self_attention`; None if the original calls an attention function of transformers'
            registry and no other module reads its input.
        attention_registry: attention is a function of transformers' registry.
        position_bias: the module of the encoder that computes a bias of relative positions, which every layer adds to its
            scores; or None.
        position_attention: the module that multiplies Q and K by tables of relative positions, or None.
        rotary: the module of the encoder that computes rotary positions, or None.
        norm_first: LayerNorms are before attention and before the feed-forward network, so the output of a layer is a sum.
        gated_ffn: the first feed-forward projection has twice the width, and one half of its output gates the other.
        pooler: the linear layer over the first token, relative to the encoder if `pooler_in_encoder`, else to the model.
        pooler_in_encoder: see `pooler`.
        classifier: the last linear layer of the classification head, relative to the model.
        positions_after_padding: positions start at ``padding_index(pad_token_id) + 1`` and count only tokens with other ids.
        fixed_padding_index: the token id of `padding_index`, independent of config.json; None for ``pad_token_id``.
        embedding_size: the field of ModelShape with the width of the embedding tables.
        shared_layers: all layers share the parameters of one, so each site has one range over all passes.
        requirements: this architecture's name of a field of config.json -> the values that q8trt can run.
        config_names: BERT's name of a field of config.json -> this architecture's name.
        config_defaults: BERT's name of a field -> transformers' default, if it differs from BERT's.
        quantized_types: `model_type` of the architecture's versions in pytorch-quantization.
    """

    model_type: str
    label: str
    embeddings: str = "embeddings"
    word_embeddings: str = "embeddings.word_embeddings"
    position_embeddings: str | None = "embeddings.position_embeddings"
    token_type_embeddings: str | None = "embeddings.token_type_embeddings"
    layers: str = "encoder.layer"
    self_attention: str = "attention.self"
    query: str = "attention.self.query"
    key: str | None = "attention.self.key"
    value: str | None = "attention.self.value"
    attention_dropout: str | None = "attention.self.dropout"
    attention_output: str = "attention.output.dense"
    attention_residual: str = "attention.output"
    ffn_intermediate: str = "intermediate.dense"
    ffn_output: str = "output.dense"
    ffn_residual: str = "output"
    attention_residual_class: str = "QuantOutput"
    ffn_residual_class: str = "QuantOutput"
    attention_class: str | None = None
    attention_registry: bool = True
    position_bias: str | None = None
    position_attention: str | None = None
    rotary: str | None = None
    norm_first: bool = False
    gated_ffn: bool = False
    pooler: str = "classifier.dense"
    pooler_in_encoder: bool = False
    classifier: str = "classifier.out_proj"
    positions_after_padding: bool = False
    fixed_padding_index: int | None = None
    embedding_size: str = "hidden_size"
    shared_layers: bool = False
    requirements: Mapping[str, Requirement] = field(default_factory=dict)
    config_names: Mapping[str, str] = field(default_factory=dict)
    config_defaults: Mapping[str, Any] = field(default_factory=dict)
    quantized_types: tuple[str, ...] = ()

    def config_name(self, name: str) -> str:
        """Return this architecture's name in config.json of BERT's field `name`."""
        return self.config_names.get(name, name)

    def padding_index(self, pad_token_id: Any) -> Any:
        """Return the token id that positions skip, if `positions_after_padding`; they start at the number after it."""
        return pad_token_id if self.fixed_padding_index is None else self.fixed_padding_index


#: Supported activations of a head's hidden layer.
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "tanh", "relu", "silu")
_ALL = (
    Architecture(
        "bert",
        "BERT",
        pooler="pooler.dense",
        pooler_in_encoder=True,
        classifier="classifier",
        quantized_types=("qdqbert",),
    ),
    Architecture(
        "roberta",
        "RoBERTa",
        positions_after_padding=True,
        config_defaults={"vocab_size": 50265, "pad_token_id": 1},
    ),
    Architecture("xlm-roberta", "XLM-RoBERTa", positions_after_padding=True, config_defaults={"pad_token_id": 1}),
    Architecture("camembert", "CamemBERT", positions_after_padding=True, config_defaults={"pad_token_id": 1}),
    Architecture(
        "electra",
        "ELECTRA",
        embedding_size="embedding_size",
        config_defaults={"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
    Architecture(
        "distilbert",
        "DistilBERT",
        token_type_embeddings=None,
        layers="transformer.layer",
        self_attention="attention",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_dropout="attention.dropout",
        attention_output="attention.out_lin",
        attention_residual="",
        ffn_intermediate="ffn.lin1",
        ffn_output="ffn.lin2",
        ffn_residual="",
        attention_residual_class="QuantTransformerBlock",
        ffn_residual_class="QuantTransformerBlock",
        pooler="pre_classifier",
        classifier="classifier",
        config_names={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "classifier_dropout": "seq_classif_dropout",
        },
        config_defaults={"num_hidden_layers": 6, "type_vocab_size": 1},
    ),
    Architecture(
        "mpnet",
        "MPNet",
        token_type_embeddings=None,
        self_attention="attention.attn",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_dropout="attention.attn.dropout",
        attention_output="attention.attn.o",
        attention_residual="attention",
        attention_residual_class="QuantMPNetAttention",
        attention_class="QuantMPNetSelfAttention",
        attention_registry=False,
        position_bias="encoder",
        positions_after_padding=True,
        fixed_padding_index=1,
        config_defaults={"vocab_size": 30527, "type_vocab_size": 1, "pad_token_id": 1},
    ),
    Architecture(
        "albert",
        "ALBERT",
        layers="encoder.albert_layer_groups.0.albert_layers",
        self_attention="attention",
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attention_dropout="attention.attention_dropout",
        attention_output="attention.dense",
        attention_residual="attention",
        ffn_intermediate="ffn",
        ffn_output="ffn_output",
        ffn_residual="",
        attention_residual_class="QuantAlbertAttention",
        ffn_residual_class="QuantAlbertLayer",
        attention_class="QuantAlbertAttention",
        pooler="pooler",
        pooler_in_encoder=True,
        classifier="classifier",
        embedding_size="embedding_size",
        shared_layers=True,
        requirements={
            name: Requirement(1, (1,), "q8trt supports ALBERT only with one layer's parameters for all layers")
            for name in ("num_hidden_groups", "inner_group_num")
        },
        config_names={"classifier_dropout": "classifier_dropout_prob"},
        config_defaults={
            "vocab_size": 30000,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "intermediate_size": 16384,
            "hidden_act": "gelu_new",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": 0.1,
        },
    ),
    Architecture(
        "deberta-v2",
        "DeBERTa-v2",
        position_embeddings=None,
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        attention_class="QuantDisentangledSelfAttention",
        attention_registry=False,
        position_attention="attention.self",
        pooler="pooler.dense",
        classifier="classifier",
        requirements={
            "relative_attention": Requirement(False, (True,), "q8trt supports DeBERTa only with relative positions"),
            "position_biased_input": Requirement(
                True, (False,), "q8trt supports DeBERTa only without absolute positions"
            ),
            "conv_kernel_size": Requirement(0, (0,), "q8trt does not support the convolution after the first layer"),
            "attention_head_size": Requirement(
                None, (None,), "q8trt supports only heads of hidden_size / num_attention_heads"
            ),
            "pos_att_type": Requirement(
                None,
                ("c2p|p2c", "p2c|c2p", ["c2p", "p2c"], ["p2c", "c2p"], "c2p", "p2c", ["c2p"], ["p2c"]),
                "expected c2p, p2c or both",
            ),
            "position_buckets": Requirement(-1, range(2, 65_537), "expected 2 to 65,536, or -1 for no buckets"),
            "max_relative_positions": Requirement(-1, range(-1, 65_537), "expected -1 to 65,536"),
            "norm_rel_ebd": Requirement("none", ("none", "layer_norm"), "expected none or layer_norm"),
            "share_att_key": Requirement(False, (False, True), "expected true or false"),
            "pooler_hidden_act": Requirement("gelu", _ACTIVATIONS, "q8trt does not support it"),
        },
        config_names={"classifier_dropout": "cls_dropout"},
        config_defaults={
            "vocab_size": 128100,
            "hidden_size": 1536,
            "num_hidden_layers": 24,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-7,
        },
    ),
    Architecture(
        "modernbert",
        "ModernBERT",
        word_embeddings="embeddings.tok_embeddings",
        position_embeddings=None,
        token_type_embeddings=None,
        layers="layers",
        self_attention="attn",
        query="attn.Wqkv",
        key=None,
        value=None,
        attention_dropout=None,
        attention_output="attn.Wo",
        attention_residual="",
        ffn_intermediate="mlp.Wi",
        ffn_output="mlp.Wo",
        ffn_residual="",
        attention_residual_class="QuantPreNormLayer",
        ffn_residual_class="QuantPreNormLayer",
        attention_class="QuantModernBertAttention",
        rotary="rotary_emb",
        norm_first=True,
        gated_ffn=True,
        pooler="head.dense",
        classifier="classifier",
        requirements={
            "global_attn_every_n_layers": Requirement(3, range(1, 513), "expected 1 to 512"),
            "local_attention": Requirement(128, range(2, 1_048_577), "expected 2 to 1,048,576 tokens"),
            "rope_scaling": Requirement(
                None, (None,), "q8trt supports only rotary positions that do not depend on the length"
            ),
            "classifier_pooling": Requirement("cls", ("cls", "mean"), "expected cls or mean"),
            "classifier_activation": Requirement("gelu", _ACTIVATIONS, "q8trt does not support it"),
        },
        config_names={
            "hidden_act": "hidden_activation",
            "layer_norm_eps": "norm_eps",
            "hidden_dropout_prob": "mlp_dropout",
            "attention_probs_dropout_prob": "attention_dropout",
        },
        config_defaults={
            "vocab_size": 50368,
            "num_hidden_layers": 22,
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": 0.0,
            "pad_token_id": 50283,
        },
    ),
)

#: transformers' ``config.model_type`` -> architecture.
ARCHITECTURES: Mapping[str, Architecture] = {entry.model_type: entry for entry in _ALL}
#: ``model_type`` of a checkpoint of pytorch-quantization that transformers lacks -> ``model_type`` of its architecture.
QUANTIZED_TYPES: Mapping[str, str] = {alias: entry.model_type for entry in _ALL for alias in entry.quantized_types}


def architecture_named(model_type: Any, where: str) -> Architecture:
    """Return the architecture of transformers' `model_type`.

    Raises:
        CheckpointError: q8trt does not support it; the message names the checkpoint as `where`.
    """
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        shown = repr(model_type) if len(repr(model_type)) <= 60 else f"{model_type!r:.57}..."
        raise CheckpointError(
            f"{where} is of type {shown}, {_generator(model_type)}not BERT-like; q8trt quantizes {', '.join(ARCHITECTURES)}; "
            "give a model of one of these types"
        )
    return ARCHITECTURES[model_type]


def _generator(model_type: Any) -> str:
    """Return "an encoder-decoder, " or "a decoder that generates text, " if transformers lists the type so, else ""."""
    from transformers.models.auto import modeling_auto as tables

    if not isinstance(model_type, str):
        return ""
    if model_type in tables.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "an encoder-decoder, "
    decoders = tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    return "a decoder that generates text, " if model_type in decoders else ""


def architecture_of(config: Any, where: str = "the model") -> Architecture:
    """Return the architecture of a transformers configuration.

    Raises:
        CheckpointError: see `architecture_named`.
    """
    return architecture_named(getattr(config, "model_type", None), where)
