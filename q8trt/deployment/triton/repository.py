"""Triton model repositories from engine folders, written completely or not at all.

    <output>/<name>/            config.pbtxt, 1/model.py, 1/encoding.py, 1/tokenizer.json: texts in, scores or labels out
    <output>/<name>_encoder/    config.pbtxt, 1/model.plan or 1/model.onnx: token arrays in, logits out

With the backend "python", there is no encoder model. 1/model.onnx is beside model.py, which runs it.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from q8trt.console.names import one_line
from q8trt.deployment.triton.config import TritonConfig
from q8trt.deployment.triton.model_config import WARMUP_TEXT, Served, Tensors, default_name
from q8trt.deployment.triton.pbtxt import render
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE, Manifest
from q8trt.engine.manifest_file import load_manifest
from q8trt.engine.rebuild import rebuild_command
from q8trt.engine.shapes import show_profiles
from q8trt.errors import ConfigError, EngineError, MissingPackageError
from q8trt.files import atomic_folder, exclusive, new_folder
from q8trt.files.onnx import check_file
from q8trt.hardware.packages import install_command
from q8trt.inference.batching import BatchLimits, batch_limits
from q8trt.inference.checks import check_tokenizer
from q8trt.inference.text import TextEncoder
from q8trt.runtime import label_of
from q8trt.tasks.data import encoding
from q8trt.tasks.data.tokenizer_file import TOKENIZER_FILE, truncation_side
from q8trt.tasks.heads import HeadKind

VERSION = "1"
_DEFAULT_BATCH = 32
#: Step of the buckets in tokens without a plan. Rows of similar length share a call, which makes fewer calls.
_STEP = 8
_OTHERS = "or serve model.onnx: --backend onnxruntime (in NVIDIA's container) or --backend python (CPU)"


@dataclass(frozen=True)
class Repository:
    """A model repository on disk.

    Attributes:
        path: folder of the model repository.
        models: names of its models; clients call the first.
        limits: lengths and batch sizes.
        manifest: the engine's manifest.
    """

    path: Path
    models: tuple[str, ...]
    limits: BatchLimits
    manifest: Manifest


def write_repository(engine: str | Path, output_dir: str | Path, config: TritonConfig | None = None) -> Repository:
    """Write the model repository of an engine folder.

    Args:
        engine: the engine folder.
        output_dir: folder of the repository, which must be missing or empty.
        config: options of serving; None for the defaults.

    Raises:
        ConfigError: the output is not empty or cannot be written, the batch exceeds the plan, or an option does not fit the
            engine's head.
        EngineError: the engine folder is missing or damaged, or lacks the file that the backend runs.
        BackendError: onnx is not installed.
    """
    config, engine, output = config or TritonConfig(), Path(engine), Path(output_dir)
    target = new_folder(output)
    manifest = load_manifest(engine)
    _check_servable(engine, manifest, config)
    tensors = read_tensors(engine / ONNX_FILE, manifest)
    sizes = _limits(manifest, config)
    check_tokenizer(engine, manifest, TextEncoder(engine, manifest, sizes.max_length).tokenizer)
    name = config.model_name or default_name(manifest)
    served = Served(name, config, manifest, tensors, sizes, truncation_side(engine))
    with exclusive(target), atomic_folder(target) as temporary:
        models = [name]
        text = _write_model(temporary, name, render(served.text_config()))
        shutil.copyfile(Path(__file__).with_name("model.py"), text / "model.py")
        shutil.copyfile(encoding.__file__, text / "encoding.py")
        shutil.copyfile(engine / TOKENIZER_FILE, text / TOKENIZER_FILE)
        if config.runtime is None:
            _write_graph(engine, text / ONNX_FILE, manifest, config)
            _write_warmup(text.parent / "warmup", sizes.max_length)
        else:
            models.append(served.encoder_name)
            encoder = _write_model(temporary, served.encoder_name, render(served.encoder_config()))
            if config.runs_plan:
                shutil.copyfile(engine / PLAN_FILE, encoder / config.runtime.model_file)
            else:
                _write_graph(engine, encoder / config.runtime.model_file, manifest, config)
    return Repository(output, tuple(models), sizes, manifest)


def _check_servable(engine: Path, manifest: Manifest, config: TritonConfig) -> None:
    """Check that the backend can serve the engine. Triton's tensorrt backend is linked to nvinfer, TensorRT's library.

    Raises:
        ConfigError: the head is for tokens, or has no threshold.
        EngineError: the plan is missing, is of another runtime, or does not accept single rows; or the graph is missing.
    """
    if manifest.head.kind.per_token:
        raise ConfigError(
            f"{engine} has a head for {manifest.head.kind}, and q8trt writes no Triton repository for it; serve it with "
            "q8trt.Engine, or load its model.onnx or model.plan in Triton as token arrays in, logits out"
        )
    if config.threshold is not None and manifest.head.kind is not HeadKind.MULTI_LABEL_CLASSIFICATION:
        raise ConfigError(
            f"--threshold is for a multi-label classifier, and {engine} answers {manifest.task.name}; leave it out"
        )
    if ONNX_FILE not in manifest.files:
        raise EngineError(f"{engine} has no {ONNX_FILE}; rebuild it: {rebuild_command(engine, manifest)}")
    if config.runtime is None or not config.runs_plan:
        return
    rebuild = f"rebuild it: {rebuild_command(engine, manifest, backend=config.runtime.name)}"
    built = manifest.backend
    if built is None or PLAN_FILE not in manifest.files:
        raise EngineError(f"{engine} has no plan; {rebuild}; {_OTHERS}")
    if built.name != config.runtime.name:
        raise EngineError(
            f"{engine / PLAN_FILE} is a plan of {label_of(built.name)}, and Triton's {config.backend} backend loads plans of "
            f"{config.runtime.label} only; {rebuild}; {_OTHERS}"
        )
    if any(profile.min[0] > 1 for profile in manifest.profiles):
        shapes = show_profiles(manifest.profiles)
        raise EngineError(
            f"{engine / PLAN_FILE} accepts {shapes}, but a request may have one row; rebuild it with 1 as the smallest batch"
        )


def _limits(manifest: Manifest, config: TritonConfig) -> BatchLimits:
    """Return the lengths and batch sizes. Texts are cut at the same length as in `q8trt.Engine`."""
    plan, wanted = config.runs_plan, config.max_batch_size
    largest = manifest.largest_shape
    sizes = batch_limits(manifest, plan, None, wanted or (largest[0] if largest else _DEFAULT_BATCH))
    if not plan:
        steps = (*range(_STEP, sizes.max_length, _STEP), sizes.max_length)
        sizes = batch_limits(manifest, plan, steps, sizes.batch_size)
    if wanted is not None and sizes.batch_size < wanted:
        shapes = show_profiles(manifest.profiles)
        raise ConfigError(
            f"--max_batch_size {wanted} exceeds the plan, which accepts {shapes}; give {sizes.batch_size} or less"
        )
    return sizes


def read_tensors(path: Path, manifest: Manifest) -> Tensors:
    """Return the inputs and the output of the encoder's graph.

    Raises:
        BackendError: onnx is not installed.
        EngineError: the graph cannot be read, or its tensors differ from the manifest.
    """
    try:
        import onnx
    except ImportError:
        raise MissingPackageError("onnx, which reads the graph, is not installed", install_command("triton")) from None
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's exceptions share no base with OSError
        raise EngineError(f"{path} cannot be read: {one_line(error)}") from error
    types = {each.name: onnx.TensorProto.DataType.Name(each.type.tensor_type.elem_type)
             for each in (*graph.input, *graph.output)}  # fmt: skip
    inputs = tuple(each.name for each in graph.input)
    outputs = {each.name: each.type.tensor_type.shape.dim for each in graph.output}
    dims = outputs.get("logits", ())
    kinds = {types[name] for name in inputs}
    if set(inputs) != set(manifest.inputs) or len(dims) != 2 or len(kinds) != 1 or not kinds <= {"INT32", "INT64"}:
        tensors = ", ".join(f"{name} {kind}" for name, kind in types.items())
        raise EngineError(f"{path} has the tensors {tensors}; expected integer {', '.join(manifest.inputs)} and logits")
    labels = dims[1].dim_value or manifest.model.num_labels
    if labels != manifest.model.num_labels:
        raise EngineError(f"{path} answers {labels} logits, but the manifest says {manifest.model.num_labels}")
    output_type = {"FLOAT": "FP32", "FLOAT16": "FP16"}.get(types["logits"], types["logits"])
    return Tensors(inputs, f"TYPE_{kinds.pop()}", f"TYPE_{output_type}", labels)


def _write_model(repository: Path, name: str, config: str) -> Path:
    """Make the folder of a model with its config.pbtxt, and return the folder of its version."""
    version = repository / name / VERSION
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    return version


def _write_graph(engine: Path, path: Path, manifest: Manifest, config: TritonConfig) -> None:
    """Copy the graph or, for the CPU, write it in the form that is fastest in ONNX Runtime.

    Without --vnni, weights are unsigned on every CPU, because the serving CPU may have no VNNI.
    """
    if config.runs_on == "cuda" or not (manifest.precision.is_quantized or manifest.precision.is_half):
        check_file(engine / ONNX_FILE)
        shutil.copyfile(engine / ONNX_FILE, path)
        return
    from q8trt.runtime.onnxruntime.graph import for_the_cpu

    source = engine / ONNX_FILE
    try:
        rewritten = for_the_cpu(source.read_bytes(), unsigned_weights=not config.vnni)
    except ValueError as error:
        raise EngineError(f"cannot load {source}, which may be damaged: {one_line(error)}") from None
    path.write_bytes(rewritten)


def _write_warmup(folder: Path, max_length: int) -> None:
    """Write a warmup text that fills the longest bucket, so that memory is allocated before the first request."""
    text = ("plane " * max_length).encode()
    folder.mkdir()
    (folder / WARMUP_TEXT).write_bytes(struct.pack("<I", len(text)) + text)
