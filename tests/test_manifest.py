import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from q8trt.engine.config import BuildConfig
from q8trt.engine.determinism import PlanDifference
from q8trt.engine.folder import find_engines
from q8trt.engine.manifest import BackendInfo, Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import digest_of, load_manifest, write_manifest
from q8trt.engine.record import BuildRecord, EngineRecord, ExportRecord
from q8trt.engine.report import EngineReport
from q8trt.engine.shapes import ShapeProfile
from q8trt.errors import EngineError
from q8trt.export.options import ExportOptions
from q8trt.export.report import KeptOp, PassReport
from q8trt.quantization.precision import Precision
from q8trt.tasks.heads import Embedding, Head, HeadKind

MANIFEST = Manifest(
    task=TaskInfo("MRPC", ["not_equivalent", "equivalent"], False, True, "f1"),
    model=ModelInfo("tiny", "bert", 2, 512, 0, 128),
    precision=Precision.INT8,
    recipe={"sites": ["qkv_input"], "percentile": 99.99},
    inputs=["input_ids", "attention_mask"],
    opset=20,
    profiles=[ShapeProfile((1, 1), (16, 64), (32, 64)), ShapeProfile((1, 65), (8, 128), (8, 128))],
    backend=BackendInfo("tensorrt_rtx", "1.7.1.116", ["8.6", "8.9"]),
    metrics={"dev": {"f1": 0.9, "accuracy": 0.86}},
    report={"engine": {"int8_gemms": 36, "notes": []}, "build": {"seconds": 1.5, "peak_memory_mib": None}},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"onnx" * 100)
    (folder / "model.plan").write_bytes(b"plan" * 1000)
    (folder / ".half.tmp").write_bytes(b"left by a crash")
    write_manifest(folder, MANIFEST)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_is_written_is_read_back(folder: Path) -> None:
    manifest = load_manifest(folder)
    assert replace(manifest, files={}, digest="") == MANIFEST
    assert list(manifest.files) == ["model.onnx", "model.plan"]
    assert manifest.files["model.onnx"].bytes == 400
    assert manifest.format == 5
    assert manifest.largest_shape == (32, 128)
    assert manifest.created.endswith("+00:00")


def test_the_engines_of_a_run_begin_with_fp32(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    for name, stage, precision in (
        ("engine", "int8", "int8+fp16"), ("engine-fp16", "fp32", "fp16"), ("engine-fp32", "fp32", "fp32"),
        ("engine-ptq", "ptq", "int8"), ("engine-int8-int8", "int8", "int8"),
    ):  # fmt: skip
        (run / name).mkdir(parents=True)
        write_manifest(run / name, replace(MANIFEST, stage=stage, precision=Precision(precision)))
    engines = find_engines((), str(tmp_path / "runs"))
    assert [engine.name for engine in engines] == ["FP32", "FP16", "PTQ INT8", "QAT INT8", "QAT INT8+FP16"]


def test_writing_twice_does_not_list_the_manifest(folder: Path) -> None:
    assert list(write_manifest(folder, MANIFEST).files) == ["model.onnx", "model.plan"]


def test_a_model_without_plan_or_recipe_is_read_back(folder: Path) -> None:
    plain = replace(MANIFEST, profiles=[], report={}, backend=None, recipe=None, precision=Precision.FP32)
    write_manifest(folder, plain)
    assert replace(load_manifest(folder), files={}, digest="") == plain
    assert plain.largest_shape is None


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere does not exist; build it with `python build_engine\.py --int8`"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(EngineError, match="nowhere does not exist"):
        write_manifest(tmp_path / "nowhere", MANIFEST)


def test_a_file_of_an_engine_folder(folder: Path) -> None:
    for name in ("model.plan", "model.onnx"):
        (folder / name).touch()
        with pytest.raises(EngineError, match=rf"{name} is a file, expected an engine folder; give {folder}$"):
            load_manifest(folder / name)


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no manifest\.json.*`python build_engine\.py --int8`"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "\xff"])
def test_invalid_json(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EngineError, match=r"manifest\.json cannot be read: "):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("opset"), "missing key: opset"),
        (lambda data: data.update(colour="red"), "unknown key: colour"),
        (lambda data: data["task"].pop("labels"), "missing key in task: labels"),
        (lambda data: data["model"].update(layers=12), "unknown key in model: layers"),
        (lambda data: data.update(opset="20"), 'opset must be a whole number, not "20"'),
        (lambda data: data["task"].update(is_pair=1), "task.is_pair must be true or false, not 1"),
        (lambda data: data.update(inputs="input_ids"), 'inputs must be a list, not "input_ids"'),
        (lambda data: data["inputs"].append(3), r"inputs\[2\] must be a string, not 3"),
        (lambda data: data.update(files=[]), r"files must be an object, not \[\]"),
        (lambda data: data["profiles"][1].update(min=[1]), r"profiles\[1\]\.min must have 2 entries, not 1"),
        (lambda data: data["profiles"][0].update(max=[1, 1]), "batch must be min <= opt <= max; got 1, 16, 1"),
        (
            lambda data: data["model"].update(max_seq_length=3 * 10**8),
            "model.max_seq_length: expected `int` <= 1048576",
        ),
        (lambda data: data["model"].update(pad_token_id=-1), "model.pad_token_id: expected `int` >= 0"),
        (lambda data: data["profiles"][0].update(max=[2**40, 64]), r"profiles\[0\]\.max\[0\]: expected `int` <= "),
        (lambda data: data["task"].update(activation="tanh"), "task.activation must be one of "),
        (lambda data: data["files"]["model.onnx"].update(sha256="x"), "expected `str` matching regex"),
        (
            lambda data: data.update(precision="int7"),
            r'precision must be one of fp32, fp16, int8, int8\+fp16, not "int7"',
        ),
        (
            lambda data: data["task"].update(is_pair=False),
            "was edited or damaged: its digest does not match; restore it",
        ),
        (lambda data: data["metrics"]["dev"].update(f1=0.99), "its digest does not match"),
        (lambda data: data.update(digest="0" * 64), "its digest does not match"),
        (lambda data: data.update(format=2), "unknown key in format 2: activation, digest, text_columns"),
        (lambda data: data.update(format=6), r"has format 6, this q8trt \(.*\) reads up to 5; upgrade q8trt"),
        (
            lambda data: data.update(format=1),
            r"has format 1, of an older q8trt; rebuild the engine with `python build_en",
        ),
    ],
)
def test_malformed_manifest(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder, change)
    with pytest.raises(EngineError, match=message):
        load_manifest(folder)


def test_the_record_of_a_build_is_read_by_its_fields(folder: Path) -> None:
    record = load_manifest(folder).record
    assert record.engine is not None
    assert (record.engine.int8_gemms, record.engine.gemms, record.build.seconds) == (36, None, 1.5)
    assert (record.build.options, record.export.options, record.is_sample) == (BuildConfig(), ExportOptions(), False)
    full = EngineRecord(
        is_sample=True,
        export=ExportRecord((PassReport("fold", 3),), (KeptOp("n", "MatMul", "overflow"),), "64 rows"),
        forecast={"gemms": 38},
        findings=2,
        engine=EngineReport("inspector", 2, notes=("a note",)),
        build=BuildRecord(
            2.5, 395.6, "new", BuildConfig(sm=("8.9",)), PlanDifference((9, 9), 1, 1, 1, 4, 4, ("a", "b"))
        ),
    )
    write_manifest(folder, replace(MANIFEST, report=full.to_dict() | {"of_a_later_version": 1}))
    assert load_manifest(folder).record == full


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"build": 5}, r"report: build must be an object, not 5"),
        ({"build": {"seconds": "1"}}, r"report: build.seconds must be a number"),
        ({"build": {"timing_cache": "old"}}, r'report: build.timing_cache must be one of .*, not "old"'),
        ({"build": {"options": {"builder_optimization_level": 9}}}, "--builder_optimization_level 9, expected 0 to 5"),
        ({"export": {"options": {"exporter": "mine"}}}, "exporter"),
    ],
)
def test_a_malformed_record_is_refused(folder: Path, report: dict[str, Any], message: str) -> None:
    write_manifest(folder, replace(MANIFEST, report=report))
    with pytest.raises(EngineError, match=message) as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)


def as_format_2(data: dict[str, Any]) -> None:
    """Turn a manifest into what q8trt wrote before format 3."""
    data["format"] = 2
    del data["head"], data["digest"], data["task"]["text_columns"], data["task"]["activation"]


@pytest.mark.parametrize("task", [MANIFEST.task, TaskInfo("STS-B", [], True, True, "pearson")])
def test_format_3_is_still_read(folder: Path, task: TaskInfo) -> None:
    write_manifest(
        folder, replace(MANIFEST, task=task, head=None, model=replace(MANIFEST.model, num_labels=len(task.labels) or 1))
    )
    before = load_manifest(folder)
    data = json.loads((folder / "manifest.json").read_text())
    data["format"] = 3
    del data["head"]
    (folder / "manifest.json").write_text(json.dumps({**data, "digest": digest_of(data)}))
    again = load_manifest(folder)
    assert replace(again, digest="") == replace(before, digest="")
    assert again.head == Head(
        HeadKind.SEQUENCE_CLASSIFICATION if task.labels else HeadKind.REGRESSION, tuple(task.labels)
    )


def test_format_4_is_still_read(folder: Path) -> None:
    before = load_manifest(folder)
    data = json.loads((folder / "manifest.json").read_text())
    data["format"] = 4
    data["head"] = {name: data["head"][name] for name in ("kind", "labels", "max_length", "embedding")}
    (folder / "manifest.json").write_text(json.dumps({**data, "digest": digest_of(data)}))
    assert replace(load_manifest(folder), digest="") == replace(before, digest="")
    (folder / "manifest.json").write_text(json.dumps({**data, "head": 3}))
    with pytest.raises(EngineError, match="head must be an object, not 3"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Head(HeadKind.EMBEDDING, embedding=Embedding(3)), "head answers 3 numbers, but model.num_labels is 2"),
        (
            Head(HeadKind.SEQUENCE_CLASSIFICATION, ("equivalent", "not_equivalent")),
            r"head.labels are .*, but task.labels are",
        ),
        (Head(HeadKind.RERANKER), "head answers 1 numbers, but model.num_labels is 2"),
    ],
)
def test_a_head_that_contradicts_the_rest_is_refused(folder: Path, head: Head, message: str) -> None:
    write_manifest(folder, replace(MANIFEST, head=head))
    with pytest.raises(EngineError, match=message):
        load_manifest(folder)


def test_format_2_is_still_read(folder: Path) -> None:
    before = load_manifest(folder)
    edit(folder, as_format_2)
    assert load_manifest(folder) == replace(before, digest="")
    edit(folder, lambda data: data["task"].pop("labels"))
    with pytest.raises(EngineError, match="missing key in task: labels"):
        load_manifest(folder)
    edit(folder, lambda data: data.update(task=3))
    with pytest.raises(EngineError, match="task must be an object, not 3"):
        load_manifest(folder)


def test_the_digest_does_not_depend_on_the_order_or_layout_of_the_file(folder: Path) -> None:
    before = load_manifest(folder)
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(dict(reversed(data.items()))))
    assert load_manifest(folder) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_manifest_that_is_a_pipe_is_refused_without_waiting(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(EngineError, match=r"no manifest\.json|not a regular file"):
        load_manifest(folder)


def test_manifest_that_is_no_object(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(EngineError, match="the document must be an object"):
        load_manifest(folder)


@pytest.mark.parametrize("name", ["../model.onnx", "a/b", "..", "/etc/passwd", "", "a\\b"])
def test_file_names_stay_in_the_folder(folder: Path, name: str) -> None:
    edit(folder, lambda data: data["files"].update({name: data["files"]["model.onnx"]}))
    edit(folder, lambda data: data.update(digest=digest_of(data)))
    with pytest.raises(EngineError, match="leaves the folder"):
        load_manifest(folder, verify=False)


def test_missing_file(folder: Path) -> None:
    (folder / "model.plan").unlink()
    with pytest.raises(EngineError, match=r"model\.plan is missing, but the manifest lists it; rebuild it with"):
        load_manifest(folder)
    load_manifest(folder, verify=False)


def test_truncated_file(folder: Path) -> None:
    (folder / "model.plan").write_bytes(b"plan" * 500)
    with pytest.raises(EngineError, match=r"model\.plan is 2,000 bytes, the manifest says 4,000: it was changed or"):
        load_manifest(folder)


def test_changed_file(folder: Path) -> None:
    (folder / "model.plan").write_bytes(b"nalp" * 1000)
    with pytest.raises(EngineError, match=r"model\.plan has SHA-256 .*, the manifest says .*: it was changed"):
        load_manifest(folder)


def test_a_metric_that_is_no_number_is_refused(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(EngineError, match=r"cannot write .*manifest\.json"):
        write_manifest(folder, replace(MANIFEST, metrics={"dev": float("nan")}))
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": {"is_regression": True}}, "task.is_regression is true, but task.labels has 2 names"),
        ({"task": {"is_regression": True, "labels": []}}, "is true, but model.num_labels is 2"),
        ({"task": {"labels": ["a", "b", "c"]}}, "task.labels has 3 names, but model.num_labels is 2"),
        ({"task": {"labels": ["a", "a"]}}, r"different names, none of them empty; they are \['a', 'a'\]"),
        ({"task": {"labels": ["a", " "]}}, "different names, none of them empty"),
        ({"task": {"activation": "sigmoid"}}, "task.activation is sigmoid, but the task is a classification"),
        ({"task": {"text_columns": ["a"]}}, "task.text_columns has 1 names, but task.is_pair is true"),
        ({"model": {"max_seq_length": 513}}, "max_seq_length is 513, but model.max_position_embeddings is 512"),
        (
            {"model": {"max_position_embeddings": 127, "max_seq_length": 64}},
            r"profiles\[1\].max is 8x128, but model.max",
        ),
        ({"inputs": ["input_ids", "input_ids"]}, "inputs must be input_ids and others of"),
        ({"inputs": ["attention_mask"]}, "inputs must be input_ids and others of"),
        ({"inputs": ["input_ids", "pixels"]}, "inputs must be input_ids and others of"),
    ],
)
def test_facts_that_contradict_each_other(folder: Path, fields: dict[str, Any], message: str) -> None:
    """A manifest that is whole by its digest: whoever wrote it was wrong."""

    def change(data: dict[str, Any]) -> None:
        for key, value in fields.items():
            data[key] = data[key] | value if isinstance(value, dict) else value
        data["digest"] = digest_of(data)

    edit(folder, change)
    with pytest.raises(EngineError, match=rf"manifest.json contradicts itself: .*{message}.*; rebuild the engine"):
        load_manifest(folder)


def test_folders_that_are_no_engine_name_the_right_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("ptq", "model", "other"):
        (run / name).mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(EngineError, match=r"run/ptq has no .* --int8 --checkpoint \S*run/ptq`$"):
        load_manifest(run / "ptq")
    (run / "engine-ptq").mkdir()
    (run / "engine-ptq" / "manifest.json").write_text("{}")
    with pytest.raises(
        EngineError, match=r"ptq is a checkpoint of a run, not an engine folder; give \S*run/engine-ptq$"
    ):
        load_manifest(run / "ptq")
    with pytest.raises(EngineError, match=r"is not a manifest of q8trt; give an engine folder that q8trt built$"):
        load_manifest(run / "engine-ptq")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"build one with `q8trt quantize \S*model`$"):
        load_manifest(tmp_path / "model")
