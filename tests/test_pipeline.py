"""The whole road on a tiny model: fine-tuning, calibration, QAT, engine, benchmark; and its shortcuts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from tiny_data import SHORT, write_mnli, write_mrpc, write_sts_b

from q8trt.cli.main import run_command
from q8trt.quantization.precision import Precision

pytestmark = pytest.mark.usefixtures("quick_export")

OPTIONS = [*SHORT, "--max_steps", "8", "--eval_steps", "2", "--save_steps", "2", "--logging_steps", "4"]
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="building without a GPU needs tensorrt_rtx"
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def finetune(data: Path, model: Path, *options: str, task: str = "STS-B") -> None:
    arguments = ["--task", task, "--data_dir", str(data), "--model_name_or_path", str(model)]
    assert run_command("finetune", [*arguments, *OPTIONS, *options]) == 0


def stages(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())["stages"]


def weights(checkpoint: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


def assert_same_weights(left: Path, right: Path) -> None:
    import torch

    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and, after the fixture `run`, runs/."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_sts_b(folder / "data")
    return folder


@pytest.fixture(scope="module")
def run(home: Path, tiny_checkpoint: Path, _one_thread: None) -> Path:
    """A finished run with all three stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        finetune(Path("data"), tiny_checkpoint)
    [made] = (home / "runs").iterdir()
    return made


@pytest.fixture(scope="module")
def engines(run: Path, home: Path) -> Path:
    """The run, after build_engine.py --int8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert run_command("build-engine", ["--int8"]) == 0
    return run


@pytest.fixture(scope="module")
def exact(engines: Path) -> Path:
    """An INT8 engine of the run with FP32 elsewhere, whose scores do not depend on rounding in FP16."""
    assert run_command("build-engine", ["--int8", "--fp32", "--checkpoint", str(engines), "--no_baseline"]) == 0
    return engines / "engine-int8-fp32"


def test_run_records_stages_scores_and_seconds(run: Path) -> None:
    assert run.name.startswith("sts-b-bert-1-")
    recorded = stages(run)
    assert list(recorded) == ["fp32", "ptq", "int8"]
    for name, stage in recorded.items():
        assert set(stage["scores"]["dev"]) == {"pearson", "spearman", "corr"}
        assert (run / stage["checkpoint"] / "model.safetensors").is_file()
        assert (run / name / "quantization.json").is_file() == (name != "fp32")
    for name in ("fp32", "int8"):
        assert recorded[name]["steps"] == 8
        assert recorded[name]["step_seconds_median"] > 0
    assert recorded["int8"]["distillation"] is True


def test_tensorboard_logs_hold_losses_and_scores(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stage in ("fp32", "int8"):
        events = EventAccumulator(str(run / "logs" / stage))
        events.Reload()
        assert [event.step for event in events.Scalars("eval/pearson")] == [2, 4, 6, 8]
        assert [event.step for event in events.Scalars("train/loss")] == [4, 8]


@pytest.mark.parametrize("stage", ["fp32", "int8"])
def test_best_checkpoint_is_kept_and_saved(run: Path, stage: str) -> None:
    folders = sorted((run / "checkpoints" / stage).iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert folders[-1].name == "checkpoint-8"
    state = json.loads((folders[-1] / "trainer_state.json").read_text())
    scores = {entry["step"]: entry["eval_pearson"] for entry in state["log_history"] if "eval_pearson" in entry}
    assert list(scores) == [2, 4, 6, 8]
    best = max(scores, key=lambda step: scores[step])
    assert {path.name for path in folders} == {"checkpoint-8", f"checkpoint-{best}"} or best == 8
    assert len(folders) == 2
    assert stages(run)[stage]["scores"]["dev"]["pearson"] == pytest.approx(scores[best], abs=1e-5)
    assert stages(run)[stage]["best_metric"] == scores[best]
    assert_same_weights(run / stage, run / "checkpoints" / stage / f"checkpoint-{best}")


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(
    run: Path, home: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    finetune(home / "data", tiny_checkpoint, "--output_dir", str(tmp_path / "again"))
    for stage in ("fp32", "ptq", "int8"):
        assert_same_weights(tmp_path / "again" / stage, run / stage)
        assert stages(tmp_path / "again")[stage]["scores"] == stages(run)[stage]["scores"]
    finetune(
        home / "data", tiny_checkpoint, "--output_dir", str(tmp_path / "other"), "--seed", "7", "--precision", "fp32"
    )
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "other/fp32", run / "fp32")


def test_stages_can_be_skipped(
    run: Path, home: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = home / "data"
    finetune(data, tiny_checkpoint, "--precision", "fp32", "--output_dir", "fp32-only")
    assert list(stages(Path("fp32-only"))) == ["fp32"]
    assert_same_weights(Path("fp32-only/fp32"), run / "fp32")
    finetune(data, tiny_checkpoint, "--from_fp32", str(run / "fp32"), "--no_qat", "--output_dir", "ptq-only")
    assert list(stages(Path("ptq-only"))) == ["fp32", "ptq"]
    assert stages(Path("ptq-only"))["fp32"]["source"] == "fp32"
    assert_same_weights(Path("ptq-only/ptq"), run / "ptq")
    finetune(data, tiny_checkpoint, "--from_fp32", str(run / "fp32"), "--no_distillation", "--output_dir", "alone")
    assert stages(Path("alone"))["int8"]["distillation"] is False
    with pytest.raises(AssertionError):
        assert_same_weights(Path("alone/int8"), run / "int8")


def test_calibrate_makes_the_runs_ptq_checkpoint(
    run: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    before = (run / "run.json").read_bytes()
    ours = str(tmp_path / "ptq")
    assert run_command("calibrate", ["--output_dir", ours, "--per_device_eval_batch_size", "8"]) == 0
    assert (run / "run.json").read_bytes() == before
    assert list(stages(Path(ours))) == ["fp32", "ptq"]
    assert_same_weights(Path(ours) / "ptq", run / "ptq")
    assert stages(Path(ours))["ptq"]["scores"] == stages(run)["ptq"]["scores"]
    out = capsys.readouterr().out
    assert "PTQ INT8 (calibrated)" in out
    assert "QAT" not in out


@needs_rtx
def test_build_makes_the_engine_and_its_baselines(engines: Path) -> None:
    from q8trt.engine.manifest_file import load_manifest

    files = {"manifest.json", "model.onnx", "model.plan", "tokenizer.json", "tokenizer_config.json"}
    engine = ("engine", "int8+fp16", "int8")
    for folder, precision, stage in (engine, ("engine-fp32", "fp32", "fp32"), ("engine-fp16", "fp16", "fp32")):
        assert files <= {path.name for path in (engines / folder).iterdir()}
        manifest = load_manifest(engines / folder)
        assert (manifest.precision, manifest.stage, manifest.task.name) == (precision, stage, "STS-B")
        assert manifest.record.export.options.fuse_qkv is True, "as the run's target, gpu, has it"
        assert "fuse_qkv" in {each.name for each in manifest.record.export.passes}
        [profile] = manifest.profiles
        assert profile.max == (32, 32), "the default profile ends where training did"
        assert manifest.metrics[f"torch_{stage}"] == stages(engines)[stage]["scores"]
    assert not list(engines.glob("*.tmp")) + list(engines.glob(".*.tmp"))


@needs_rtx
def test_forecast_and_engine_are_told_and_kept(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from q8trt.engine.manifest_file import load_manifest

    options = ["--checkpoint", str(engines), "--output_dir", str(tmp_path / "engine"), "--verify_deterministic"]
    capsys.readouterr()
    assert run_command("build-engine", [*options, "--buckets", "8,16", "--max_batch", "8", "--sm", "8.9"]) == 0
    out, err = capsys.readouterr()
    assert "the plan accepts at most 16 tokens; the model was trained with 32, so longer rows are cut" in err
    manifest = load_manifest(tmp_path / "engine")
    assert [str(each) for each in manifest.profiles] == ["1x1 to 8x8, best at 8x8", "1x9 to 8x16, best at 8x16"]
    assert manifest.backend is not None
    assert manifest.backend.sm_targets == ["8.9"]
    report = manifest.report
    forecast, engine, build = report["forecast"], report["engine"], report["build"]
    # two layers of four GEMMs each, one of them for Q, K and V; pooler and classifier stay in float
    assert (forecast["int8_gemms"], forecast["gemms"]) == (engine["int8_gemms"], engine["gemms"]) == (8, 10)
    assert engine["profiles"] == 2
    # on so small a model the compiler's threads race for the numbers of its temporary tensors; no more than names differ
    assert build["built_twice"]["text_regions"] == build["built_twice"]["regions"]
    assert build["built_twice"]["identical"] == (build["built_twice"]["regions"] == 0)
    assert build["seconds"] > 0
    assert build["options"]["sm"] == ["8.9"]
    assert {each["name"] for each in report["export"]["passes"]} >= {"fold_weights"}
    assert report["export"]["kept_fp32"] == []
    for words in ("GEMMs in INT8", "8 of 10", "reformats", "built twice", "batch x sequence 1x1 to 8x8"):
        assert words in out
    assert not list(tmp_path.glob("engine/.*"))


@needs_rtx
def test_fp16_is_tried_on_training_rows_and_says_so(
    engines: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from q8trt.engine.manifest_file import load_manifest

    monkeypatch.chdir(home)
    options = ["--checkpoint", str(engines), "--int8", "--fp16", "--fuse_qkv", "--exporter", "torchscript"]
    assert run_command("build-engine", [*options, "--output_dir", str(tmp_path / "engine")]) == 0
    assert "kept in FP32 after a trial on 48 training rows of STS-B: 0 operations" in capsys.readouterr().out
    report = load_manifest(tmp_path / "engine").report
    assert report["export"]["overflow_rows"] == "48 training rows of STS-B"
    assert {each["name"]: each["changed"] for each in report["export"]["passes"]}["fuse_qkv"] == 2
    assert report["forecast"]["fp32_compute_ops"] == []


@needs_rtx
def test_without_training_rows_built_in_sentences_stand_in(
    engines: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from q8trt.deployment.source import OVERFLOW_ROWS, find_source, overflow_batches
    from q8trt.errors import DataError
    from q8trt.models import load_tokenizer
    from q8trt.tasks import data

    load = data.load_train

    def absent(config: Any) -> Any:
        if not config.sample:
            raise DataError("no such file")
        return load(config)

    monkeypatch.setattr(data, "load_train", absent)
    source = find_source(Precision.INT8_FP16, str(engines), str(engines.parent))
    batches, rows = overflow_batches(source, load_tokenizer(str(source.checkpoint)))
    assert rows == "64 built-in sentence pairs, because the training rows are missing"
    assert sum(len(batch["input_ids"]) for batch in batches) == OVERFLOW_ROWS
    assert {str(array.dtype) for batch in batches for array in batch.values()} == {"int32"}
    assert "the training rows are missing (no such file)" in caplog.text


def ort_pearson(engine: Path, dev: Path) -> float:
    """Row by row, with nothing of q8trt: tokenizers, ONNX Runtime, scipy."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()  # node by node: fused INT8 kernels saturate on some CPUs
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(engine / "model.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(engine / "tokenizer.json"))
    tokenizer.no_padding()
    kinds = {
        node.name: {"tensor(int32)": np.int32, "tensor(int64)": np.int64}[node.type] for node in session.get_inputs()
    }
    got, expected = [], []
    for line in dev.read_text().splitlines()[1:]:
        _, first, second, score = line.split("\t")
        encoded = tokenizer.encode(first, second)
        arrays = {
            "input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids
        }  # fmt: skip
        inputs = {name: np.array([arrays[name]], kinds[name]) for name in kinds}
        got.append(float(session.run(None, inputs)[0].squeeze()))
        expected.append(float(score))
    return float(scipy.stats.pearsonr(got, expected).statistic)


def timed_shapes(row: dict[str, Any]) -> list[tuple[int, int]]:
    return [(latency["batch"], latency["sequence"]) for latency in row["latencies"]]


@needs_rtx
def test_benchmark_reports_what_onnxruntime_computes(
    engines: Path, exact: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    timing = ["--warmup", "1", "--iterations", "3"]
    folders = [word for name in ("engine-fp32", exact.name) for word in ("--engine", str(engines / name))]
    assert run_command("benchmark", [*folders, *timing, "--backend", "onnxruntime", "--parity"]) == 0
    report = json.loads((engines / "benchmark.json").read_text())
    text = (engines / "benchmark.md").read_text()
    assert [row["name"] for row in report["rows"]] == ["FP32", "QAT INT8"]
    assert report["rows_evaluated"] == 16
    for row, folder in zip(report["rows"], ("engine-fp32", exact.name), strict=True):
        assert row["label"].startswith("ONNX Runtime, CPU")
        assert row["metrics"]["pearson"] == pytest.approx(
            ort_pearson(engines / folder, home / "data/dev.tsv"), abs=2e-4
        )
        assert f"| {row['name']} | ONNX Runtime, CPU | {row['precision']} |" in text
        # the default shapes, cut to the profile
        assert timed_shapes(row) == [(1, 32), (16, 32)]
        assert row["onnx_mib"] > 0
        assert row["plan_mib"] > 0
        assert row["parity"]["largest_logit_difference"] < 0.05
    assert "they do not forecast a GPU's" in text or report["provenance"]["hardware"]["gpus"]
    out = capsys.readouterr().out
    # the plan of QAT is the one to deploy
    assert f"{exact.name}/model.plan" in out.split("plan:")[-1].splitlines()[0]
    assert "QAT INT8" in out


@needs_rtx
def test_benchmark_takes_the_engines_of_the_newest_run(
    engines: Path, exact: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    quick = ["--warmup", "0", "--iterations", "1", "--backend", "onnxruntime", "--no_layer_times"]
    assert run_command("benchmark", quick) == 0
    rows = json.loads((engines / "benchmark.json").read_text())["rows"]
    assert {"FP32", "FP16", "QAT INT8+FP16"} <= {row["name"] for row in rows}
    # FP16's plan was built last, but one of QAT is to deploy
    plan = Path(capsys.readouterr().out.split("plan:")[-1].splitlines()[0].strip())
    assert plan.parent.name in ("engine", "engine-int8-fp32")


@needs_rtx
def test_profile_of_one_row_is_timed_by_default(engines: Path, tmp_path: Path) -> None:
    """Cut to this profile the default shapes are one and the same."""
    engine = str(tmp_path / "engine")
    shapes = ["--min_shapes", "1x8", "--opt_shapes", "1x16", "--max_shapes", "1x32"]
    assert run_command("build-engine", ["--checkpoint", str(engines), "--output_dir", engine, *shapes]) == 0
    timing = ["--iterations", "1", "--warmup", "0", "--no_accuracy", "--backend", "onnxruntime"]
    assert run_command("benchmark", ["--engine", engine, *timing]) == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert timed_shapes(report["rows"][0]) == [(1, 32)]


@needs_rtx
def test_the_exporter_of_users_gives_the_same_file(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other tests of this file trace by torchscript; this one runs the default as the command does."""
    from q8trt.export import trace

    monkeypatch.setitem(trace._TRACERS, "dynamo", trace._trace_dynamo)
    monkeypatch.setitem(trace._EMITTERS, "dynamo", trace._emit_dynamo)
    options = ["--int8", "--checkpoint", str(engines), "--output_dir", str(tmp_path / "engine")]
    assert run_command("build-engine", options) == 0
    assert (tmp_path / "engine" / "model.onnx").read_bytes() == (engines / "engine" / "model.onnx").read_bytes()


@needs_rtx
def test_copied_engine_is_scored_on_data_that_the_user_names(
    engines: Path, exact: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    shutil.copytree(exact, "copied/engine")
    data = ["--task", "STS-B", "--data_dir", str(home / "data"), "--max_seq_length", "32"]
    options = ["--iterations", "1", "--warmup", "0", "--shapes", "2x16", "--backend", "onnxruntime"]
    assert run_command("benchmark", ["--engine", "copied/engine", *data, *options]) == 0
    [row] = json.loads(Path("copied/benchmark.json").read_text())["rows"]
    assert row["metrics"]["pearson"] == pytest.approx(stages(engines)["int8"]["scores"]["dev"]["pearson"], abs=2e-4)


@pytest.mark.parametrize(
    ("task", "write", "splits", "metrics"),
    [
        ("MNLI", write_mnli, ["dev_matched", "dev_mismatched"], {"accuracy"}),
        ("MRPC", write_mrpc, ["dev"], {"f1", "accuracy"}),
    ],
)
def test_classification_tasks_are_distilled_and_scored(
    task: str, write: Callable[[Path], Path], splits: list[str], metrics: set[str],
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = write(tmp_path / "data")
    finetune(data, tiny_checkpoint, "--output_dir", str(tmp_path / "run"), "--max_steps", "4", task=task)
    recorded = stages(tmp_path / "run")
    out = capsys.readouterr().out
    for stage in ("fp32", "ptq", "int8"):
        assert list(recorded[stage]["scores"]) == splits
        for split in splits:
            assert set(recorded[stage]["scores"][split]) == metrics
            assert all(0 <= value <= 1 for value in recorded[stage]["scores"][split].values())
    for split in splits:
        assert f"QAT INT8               {split}: " in out
    config = json.loads((tmp_path / "run/int8/config.json").read_text())
    assert len(config["id2label"]) == (3 if task == "MNLI" else 2)


def test_evaluation_can_be_left_out(home: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """--no_do_eval keeps the last weights."""
    run = tmp_path / "run"
    finetune(home / "data", tiny_checkpoint, "--no_do_eval", "--precision", "fp32", "--output_dir", str(run))
    assert stages(run)["fp32"]["best_metric"] is None
    assert_same_weights(run / "fp32", run / "checkpoints/fp32/checkpoint-8")


def test_save_total_limit_bounds_checkpoints(home: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for limit in (1, 3):
        run = tmp_path / f"run{limit}"
        options = ("--save_total_limit", str(limit), "--precision", "fp32", "--output_dir", str(run))
        finetune(home / "data", tiny_checkpoint, *options)
        assert len(list((run / "checkpoints/fp32").iterdir())) == limit


def test_twelve_rows_are_enough(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a stage, for which the warm-up, rounded up, was as long as training."""
    monkeypatch.chdir(tmp_path)
    write_sts_b(Path("data"), train=12)
    data = ["--task", "STS-B", "--data_dir", "data", "--model_name_or_path", str(tiny_checkpoint)]
    assert run_command("finetune", [*data, "--max_seq_length", "32", "--use_cpu", "--output_dir", "run"]) == 0
    recorded = stages(Path("run"))
    assert recorded["fp32"]["steps"] == 3
    assert recorded["int8"]["steps"] == 1


def test_a_schedule_of_qat_that_cannot_be_is_refused_before_fp32(
    tiny_checkpoint: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    data = [
        "--task",
        "STS-B",
        "--data_dir",
        "data",
        "--model_name_or_path",
        str(tiny_checkpoint),
        "--output_dir",
        "run",
    ]
    assert run_command("finetune", [*data, *OPTIONS, "--lr_end", "4e-5"]) == 2
    assert "--lr_end 4e-05 is not below --qat_learning_rate 3e-05" in capsys.readouterr().err
    assert not Path("run").exists()
