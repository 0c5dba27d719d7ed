"""Checkpoints whose config.json or tokenizer files are damaged, given to `calibrate.py`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.mutations import flipped, json_bytes, json_mutations, replaced, spliced, truncated, without
from q8trt.quantization.architectures import ARCHITECTURES

TESTS = Path(__file__).resolve().parents[2] / "tests"
#: Values in the place of every number of a configuration.
_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 3, 7, 2**20, 2**31, 2**40, 10**9, 10**30, 0.5, 12.0, 1e308, float("nan"), float("inf"), "12", "", None, True,
    [], {},
)  # fmt: skip
#: Keys that a configuration of the BERT family may have beside those of the tiny one, and what real files hold there.
_ODD: tuple[tuple[str, Any], ...] = (
    ("auto_map", {"AutoModel": "modeling_x.X"}), ("auto_map", {"AutoConfig": "other/repo--x.X"}), ("auto_map", "x"),
    ("is_decoder", True), ("add_cross_attention", True), ("is_encoder_decoder", True), ("is_decoder", "yes"),
    ("pruned_heads", {"0": [0]}), ("pruned_heads", {}), ("pruned_heads", [1]),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("quantization_config", {"quant_method": "modelopt"}), ("quantization_config", "x"), ("quantization_config", []),
    ("output_attentions", True), ("output_hidden_states", True), ("return_dict", False), ("torchscript", True),
    ("use_return_dict", False), ("chunk_size_feed_forward", 3), ("gradient_checkpointing", True), ("use_cache", "x"),
    ("torch_dtype", "float16"), ("torch_dtype", "floaty"), ("dtype", "bfloat16"), ("dtype", 7),
    ("attn_implementation", "flash_attention_2"), ("_attn_implementation", "x"), ("experts_implementation", "x"),
    ("position_embedding_type", "relative_key_query"), ("position_embedding_type", 1),
    ("problem_type", "multi_label_classification"), ("problem_type", "single_label_classification"), ("problem_type", "x"),
    ("problem_type", []), ("id2label", {}), ("id2label", []), ("id2label", {"0": None}), ("id2label", {"x": "y"}),
    ("id2label", {"0": "a", "1": "b"}), ("id2label", {"0": ["a"]}), ("label2id", []), ("num_labels", 10**9),
    ("num_labels", "1"), ("architectures", "BertModel"), ("architectures", []), ("architectures", None),
    ("architectures", ["BertForMaskedLM"]), ("task_specific_params", 3), ("per_layer_config", {"0": {}}),
    ("_name_or_path", 5), ("name_or_path", "/etc"), ("transformers_version", 7), ("model_type", "gpt2"),
    ("model_type", "x"), ("model_type", None), ("model_type", ["bert"]), ("model_type", "qdqbert"), ("model_type", "t5"),
    ("hidden_act", "x"), ("hidden_act", "relu"), ("hidden_act", 1), ("rope_scaling", {"x": 1}), ("text_config", {"a": 1}),
    ("tie_word_embeddings", "x"), ("bos_token_id", "x"), ("sinusoidal_pos_embds", True), ("keys_to_ignore_at_inference", 1),
    ("attribute_map", {}), ("sub_configs", {}), ("__class__", "x"), ("__dict__", {}), ("to_dict", 1), ("base_config_key", 1),
)  # fmt: skip
_TOKENIZER_ODD: tuple[tuple[str, Any], ...] = (
    ("auto_map", {"AutoTokenizer": ["x.Y", None]}), ("tokenizer_class", "BertJapaneseTokenizer"), ("tokenizer_class", "x"),
    ("tokenizer_class", 5), ("tokenizer_class", None), ("tokenizer_class", "TapasTokenizer"), ("model_max_length", 10**30),
    ("model_max_length", -1), ("model_max_length", "x"), ("model_max_length", None), ("model_max_length", 0),
    ("pad_token", None), ("pad_token", "zzz"), ("pad_token", 3), ("pad_token", {"content": "x"}), ("pad_token", []),
    ("model_input_names", []), ("model_input_names", "x"), ("model_input_names", ["input_ids"]), ("model_input_names", None),
    ("padding_side", "x"), ("truncation_side", "left"), ("truncation_side", 1), ("added_tokens_decoder", {"9999": {}}),
    ("added_tokens_decoder", {"9999": {"content": "x"}}), ("added_tokens_decoder", []), ("backend", "x"), ("name_or_path", 1),
    ("extra_special_tokens", {"x": 1}), ("extra_special_tokens", ["x"]), ("unk_token", None), ("cls_token", None),
    ("chat_template", "{{ 1 / 0 }}"), ("do_lower_case", "x"), ("sep_token", "zzz"), ("clean_up_tokenization_spaces", 1),
)  # fmt: skip


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield some 900 checkpoints."""
    sys.path.insert(0, str(TESTS))
    from tiny_data import write_sts_b

    from q8trt.models.checkpoints import save_checkpoint

    write_sts_b(base / "data", 8, 4)
    for name in ARCHITECTURES:
        from conftest import WITH_TOKEN_TYPES, make_model, make_tokenizer

        tokenizer = make_tokenizer(token_types=name in WITH_TOKEN_TYPES)
        save_checkpoint(base / name, make_model(name), tokenizer)
        (base / name / "hashes.json").unlink()  # as a checkpoint from elsewhere
    config = {name: json.loads((base / name / "config.json").read_text()) for name in ARCHITECTURES}
    make = partial(_case, base)
    yield make("sound", "bert", {})
    for name in ARCHITECTURES:
        for key, value in config[name].items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                for new in random.sample(_NUMBERS, 3) if name != "bert" else _NUMBERS:
                    yield make(
                        f"number: {name} {key} = {new}"[:80], name, {"config.json": replaced(config[name], (key,), new)}
                    )
            if name == "bert" or random.random() < 0.3:
                yield make(f"missing: {name} {key}", name, {"config.json": without(config[name], (key,))})
        for number, (key, value) in enumerate(_ODD if name == "bert" else random.sample(_ODD, 12)):
            changed = {"config.json": config[name] | {key: value}}
            yield make(f"odd: {number} {name} {key}", name, changed)
        for title, data in json_mutations(config[name], random, 40):
            yield make(f"config {title}", name, {"config.json": data})
    yield from _tokenizers(base, random, make)


def _tokenizers(base: Path, random: Random, make: Any) -> Iterator[Case]:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        data = (base / "bert" / name).read_bytes()
        for title, changed in json_mutations(json.loads(data), random, 80):
            yield make(f"{name} {title}", "bert", {name: changed})
        for mutate in (flipped, truncated, spliced):
            for number in range(10):
                yield make(f"{name} {mutate.__name__}: {number}", "bert", {name: mutate(data, random)})
    config = json.loads((base / "bert" / "tokenizer_config.json").read_text())
    for number, (key, value) in enumerate(_TOKENIZER_ODD):
        yield make(f"tokenizer odd: {number} {key}", "bert", {"tokenizer_config.json": config | {key: value}})
    for name in ("special_tokens_map.json", "added_tokens.json"):
        for number, value in enumerate(({}, [], "x", {"pad_token": 5}, {"x": 999_999}, {"x": -1}, b"{", b"\xff")):
            yield make(f"{name}: {number}", "bert", {name: value})
    words = [line.encode() for line in json.loads((base / "bert" / "tokenizer.json").read_text())["model"]["vocab"]]
    for number, lines in enumerate(
        (
            words,
            words[:3],
            [],
            [b"\xff\xfe"],
            words * 2,
            [*words, *(b"w%d" % each for each in range(999))],
            [b"x" * 10**6],
        )
    ):
        yield make(f"vocab.txt: {number}", "bert", {"vocab.txt": b"\n".join(lines), "tokenizer.json": None,
                                                    "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}})  # fmt: skip


def _case(base: Path, name: str, architecture: str, changes: dict[str, Any]) -> Case:
    return Case(
        name,
        partial(_take, str(base / "data")),
        partial(_write, base / architecture, changes),
        partial(_honest, architecture),
        writes=("run",),
        seconds=30,
        mib=1024,
    )


def _take(data: str, folder: Path) -> None:
    """Do what `calibrate.py` does until the quantizers are put in: checks, rows, weights, scores, the FP32 checkpoint.

    Importing the library of quantizers and calibrating would take seconds a case, and see no more of these files.
    """
    from q8trt.console.names import printable
    from q8trt.errors import CheckpointError, Q8TRTError
    from q8trt.models.checkpoints import load_finetuned, save_checkpoint
    from q8trt.quantization.precision import Precision
    from q8trt.runs.config import CalibrationConfig
    from q8trt.tasks.data import DataConfig
    from q8trt.training.execution import calibration_of
    from q8trt.training.finetuning import evaluate_model, load_inputs

    rows = DataConfig("STS-B", data_dir=data, max_seq_length=24)
    config = calibration_of("model", CalibrationConfig(), rows, "runs", "linear", print)
    try:
        inputs = load_inputs(config)
        model = load_finetuned("model", config.data.resolved_task)
    except Q8TRTError as error:  # as the command line prints it
        raise CheckpointError(printable(str(error))) from None
    evaluate_model(model, config, inputs, Precision.FP32)
    save_checkpoint(Path("run/ptq"), model, inputs.tokenizer)
    load_finetuned("run/ptq", config.data.resolved_task)


def _write(sound: Path, changes: dict[str, Any], folder: Path) -> None:
    """Copy the sound checkpoint, and change files: bytes, or a JSON document, or None to remove one."""
    shutil.copytree(sound, folder / "model")
    for name, value in changes.items():
        path = folder / "model" / name
        if value is None:
            path.unlink()
        else:
            path.write_bytes(value if isinstance(value, bytes) else json_bytes(value))


def _honest(architecture: str, outcome: Outcome, folder: Path) -> str:
    """Check that what was accepted has the shape that the file says, and a tokenizer within the tables."""
    theirs = json.loads((folder / "model" / "config.json").read_bytes())
    ours = json.loads((folder / "run" / "ptq" / "config.json").read_bytes())
    if ours["model_type"] != architecture:
        return f"became {ours['model_type']}"
    for key in ("hidden_size", "dim", "num_hidden_layers", "n_layers", "vocab_size", "num_attention_heads", "n_heads"):
        if key in theirs and theirs[key] != ours.get(key):
            return f"{key} was {theirs[key]}, became {ours.get(key)}"
    for key in ("is_decoder", "add_cross_attention", "auto_map", "pruned_heads", "quantization_config"):
        if theirs.get(key) not in (None, False, {}, [], "", 0):
            return f"{key} = {theirs[key]} was ignored"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("model_config", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
