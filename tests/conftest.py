"""Fixtures that more than one test module uses: a tiny tokenizer, tiny models and their checkpoints, no network."""

from __future__ import annotations

import copy
import functools
import gc
import os
import signal
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models gain nothing from threads, and on busy cores threads wait for each other: several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Architecture -> fields of its tiny configuration that the others do not have, or have with another value.
TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "max_position_embeddings": 66},  # its positions count from pad_token_id + 1
    "xlm-roberta": {"type_vocab_size": 1, "max_position_embeddings": 66},
    "camembert": {"type_vocab_size": 1, "max_position_embeddings": 66},
    "electra": {"embedding_size": 16},
    "distilbert": {},
    "mpnet": {"max_position_embeddings": 66},  # its positions count from 2
    "albert": {"embedding_size": 16},
    "deberta-v2": {
        "relative_attention": True, "position_biased_input": False, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": "p2c|c2p", "type_vocab_size": 0,
    },
    "modernbert": {
        "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "global_attn_every_n_layers": 2,
        "local_attention": 8, "classifier_pooling": "mean",
    },
}  # fmt: skip
#: Those whose entry differs from another's in names and defaults alone; one test is about them, not all.
ALIKE = {"xlm-roberta": "roberta", "camembert": "roberta"}
#: Those whose sites differ from the others': test_architectures.py is about them.
APART = ("deberta-v2", "modernbert")
ARCHITECTURES = tuple(name for name in TINY_CONFIGS if name not in (*ALIKE, *APART))
#: Those whose tokenizer makes token types.
WITH_TOKEN_TYPES = ("bert", "electra", "albert")
#: Files of tests that take longest, the longest first.
LONGEST = (
    "test_triton_server", "test_distributed", "test_resume", "test_export_passes", "test_training", "test_gpu_check",
    "test_pipeline", "test_sensitivity", "test_parity", "test_folders_cli", "test_commands", "test_cli_failures",
)  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = """
a about above across after again air all alone along also am an and animal any apple are arm around as ask at away
baby back bad ball bank be bear because bed been before bell best better big bird black blue boat body book both box
boy bread bring brown build but buy by cake call came can car cat chair child city close coat cold come cook could
country cow cut dance dark day did do dog door down draw drink drive dry each ear earth eat egg end every eye face
fall family far farm fast father feel few field find fine fire first fish five floor flower fly food foot for four
friend from full game garden get girl give glass go gold good grass great green guitar had hair half hand happy hard
has have he head hear her here high hill him his hold home horse hot house how i if in into is it jump keep kitchen
knife large laugh leg light like little long man many me moon more mother music my new night no not now of old on one
or out over people plane play red ride river road room run running sea see she sing sit sleep slow small snow some
stand street sun table talk the their they this three to top train tree two under up very walk wall was water way we
white who wind window with woman wood word work write yellow you young
""".split()  # noqa: SIM905 - a list of 250 quoted words is harder to read


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="let tests marked gpu fail, not skip, without a GPU")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that several processes end at about the same time."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Ctrl-C as a person's terminal has it: a shell starts background jobs, and so some CI runs, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def no_fsync() -> Iterator[None]:
    """No test pulls the plug, and a run waits for the disk a hundred times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Let the garbage collector pass by what is imported by now: each training begins with a full collection."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (obstacle := gpu_obstacle()):
        (pytest.fail if item.config.getoption("--require-gpu") else pytest.skip)(obstacle)


@functools.cache
def gpu_obstacle() -> str | None:
    """Return the reason why tests that load a plan on a GPU cannot run here; None if they can."""
    from q8trt.engine.backend import find_backend
    from q8trt.errors import BackendError
    from q8trt.hardware.gpu import gpus

    cards = gpus()
    if not cards:
        return "no NVIDIA GPU"
    try:
        return find_backend().refusal(cards[0])
    except BackendError as error:
        return str(error)


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder of official GLUE TSV files beside the checkout."""
    folder = Path(__file__).parents[2] / "shared" / "glue"
    if not folder.is_dir():
        pytest.skip("no GLUE data beside the checkout (shared/glue)")
    return folder


@functools.cache
def make_tokenizer(token_types: bool = True) -> Any:
    """A WordPiece tokenizer over `WORDS`, letters, digits and punctuation: any English text has ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL, *WORDS, *(c for c in letters if c not in WORDS), *(f"##{c}" for c in letters), "##s", "##ing"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *string.punctuation]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=inputs if token_types else ["input_ids", "attention_mask"],
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def make_config(architecture: str = "bert", num_labels: int = 1, **overrides: Any) -> Any:
    """A configuration of 2 layers, hidden size 32, 2 heads; weights large enough for logits that differ."""
    from transformers import AutoConfig

    from q8trt.quantization.architectures import ARCHITECTURES as ENTRIES

    vocabulary = len(make_tokenizer())
    shared: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": 0.2, "pad_token_id": 0}
    shared |= {"num_labels": num_labels, "max_position_embeddings": 64}
    if num_labels == 1:
        shared["problem_type"] = "regression"
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    sizes = {ENTRIES[architecture].config_name(name): size for name, size in sizes.items()}
    return AutoConfig.for_model(architecture, **(shared | sizes | TINY_CONFIGS[architecture] | overrides))


def make_model(architecture: str = "bert", num_labels: int = 1, seed: int = 0, **overrides: Any) -> Any:
    """A random sequence classification model in evaluation mode, the same for the same arguments.

    Biases and LayerNorm gains are random too: a test must notice one that got lost.
    """
    return make_model_of("SequenceClassification", architecture, num_labels, seed, **overrides)


def make_model_of(head: str, architecture: str = "bert", num_labels: int = 2, seed: int = 0, **overrides: Any) -> Any:
    """As `make_model`, of transformers' class ``AutoModelFor<head>``."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        automatic = getattr(transformers, f"AutoModelFor{head}")
        model = automatic.from_config(make_config(architecture, num_labels, **overrides))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def make_batch(architecture: str = "bert", shape: tuple[int, int] = (3, 17), seed: int = 0) -> dict[str, Any]:
    """Random ids of `shape`, each row but the first padded to its own length; what the architecture's tokenizer makes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    rows, width = shape
    lengths = torch.randint(width // 2, width + 1, (rows, 1), generator=generator)
    lengths[0] = width
    mask = (torch.arange(width) < lengths).long()
    ids = torch.randint(len(SPECIAL), len(make_tokenizer()), shape, generator=generator)
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    if architecture in WITH_TOKEN_TYPES:
        batch["token_type_ids"] = (torch.arange(width) >= lengths // 2).long() * mask
    return batch


def layer_count(architecture: str) -> int:
    """Layers of the tiny model that have parameters of their own."""
    from q8trt.quantization.architectures import ARCHITECTURES as ENTRIES

    return 1 if ENTRIES[architecture].shared_layers else 2


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """See `make_tokenizer`; makes input_ids, token_type_ids and attention_mask."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """``tiny_config(architecture="bert", num_labels=1, **overrides)``; see `make_config`."""
    return make_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """``tiny_model(architecture="bert", num_labels=1, seed=0, **overrides)``; see `make_model`."""
    return make_model


@pytest.fixture(scope="session")
def tiny_batch() -> Callable[..., dict[str, Any]]:
    """``tiny_batch(architecture="bert", shape=(3, 17), seed=0)``; see `make_batch`."""
    return make_batch


@pytest.fixture(scope="session")
def tiny_quantized() -> Callable[..., tuple[Any, Any]]:
    """``tiny_quantized(architecture="bert", num_labels=1)``: a calibrated quantized model, one's own, and its recipe."""

    @functools.cache
    def build(architecture: str, num_labels: int) -> tuple[Any, Any]:
        from q8trt.quantization.calibration import calibrate
        from q8trt.quantization.insertion import insert_quantizers
        from q8trt.quantization.recipe import load_recipe

        model, recipe = make_model(architecture, num_labels), load_recipe("linear").candidates[0]
        insert_quantizers(model, recipe)
        calibrate(model, recipe, [make_batch(architecture, seed=seed) for seed in range(3)])
        return model, recipe

    def copied(architecture: str = "bert", num_labels: int = 1) -> tuple[Any, Any]:
        model, recipe = build(architecture, num_labels)
        return copy.deepcopy(model), recipe

    return copied


@pytest.fixture(scope="session")
def tiny_checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_checkpoint_of(architecture="bert", num_labels=1)``: folder of a fine-tuned checkpoint. Do not change it.

    It has no hashes, as a checkpoint from elsewhere: a test may change a copy.
    """

    @functools.cache
    def build(architecture: str = "bert", num_labels: int = 1) -> Path:
        from q8trt.models.checkpoints import save_checkpoint

        folder = tmp_path_factory.mktemp("tiny") / f"{architecture}-{num_labels}"
        tokenizer = make_tokenizer(token_types=architecture in WITH_TOKEN_TYPES)
        save_checkpoint(folder, make_model(architecture, num_labels), tokenizer)
        (folder / "hashes.json").unlink()
        return folder

    return build


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoint_of: Callable[..., Path]) -> Path:
    """Folder of a BERT checkpoint fine-tuned for STS-B: one output, regression. Do not change it."""
    return tiny_checkpoint_of("bert", 1)


@pytest.fixture(scope="module")
def quick_export() -> Iterator[None]:
    """Let the exporter dynamo trace as torchscript does, in a twentieth of its 4.5 s for a tiny model.

    Both give the same file, as test_export_passes.py checks.
    """
    from q8trt.export import trace

    with pytest.MonkeyPatch.context() as patch:
        for table in (trace._TRACERS, trace._EMITTERS):
            patch.setitem(table, "dynamo", table["torchscript"])
        yield


@pytest.fixture
def rtx() -> Any:
    """TensorRT-RTX, the backend that builds without a GPU."""
    from q8trt.engine.backend import find_backend

    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return find_backend("rtx")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return request.param
