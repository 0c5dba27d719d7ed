"""The Python API: the whole chain without a command line, silence, progress, and errors."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_data import write_sts_b

import q8trt
from q8trt.errors import ConfigError
from q8trt.runs.config import FinetuneConfig

pytestmark = pytest.mark.usefixtures("quick_export")
SHORT = {"max_seq_length": 32, "per_device_train_batch_size": 8, "use_cpu": True, "max_steps": 2, "do_eval": False}
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="building without a GPU needs tensorrt_rtx"
)
Shown = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    write_sts_b(folder / "data")
    return folder


@pytest.fixture(scope="module")
def trained(home: Path, tiny_checkpoint: Path) -> tuple[q8trt.Run, Shown, list[str]]:
    """A finished run, what was shown of its progress, and its messages."""
    shown: Shown = []
    messages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        run = q8trt.finetune(
            task="STS-B", model_name_or_path=tiny_checkpoint, data_dir="data", recipe="full", calibration_samples=16,
            progress=lambda *each: shown.append(each), on_message=messages.append, **SHORT,
        )  # fmt: skip
    return q8trt.Run(home / run.path), shown, messages


def test_a_run_has_stages_and_scores(trained: tuple[q8trt.Run, Shown, list[str]]) -> None:
    run, _, messages = trained
    assert list(run.scores) == ["fp32", "ptq", "int8"]
    assert {"pearson", "spearman"} <= run.scores["int8"]["dev"].keys()
    assert Path(run) == Path(str(run)) == run.path
    assert run.record.provenance["command"].startswith("q8trt.finetune task=STS-B")
    assert run.record.config["recipe"]["name"] == "full"
    assert messages[0].startswith("run: runs/")


def test_progress_is_replaced(trained: tuple[q8trt.Run, Shown, list[str]]) -> None:
    shown = trained[1]
    assert {"FP32", "INT8", "Evaluating int8 on dev"} <= {description for description, _, _ in shown}
    assert any(description.startswith("Calibrating on ") for description, _, _ in shown)
    ends = {description: (done, total) for description, done, total in shown}
    assert ends["FP32"] == (2, 2)
    assert ends["Evaluating int8 on dev"] == (16, 16)


@needs_rtx
def test_run_to_answers(
    trained: tuple[q8trt.Run, Shown, list[str]], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Engine, benchmark, parity, lint, archive, scoring and app, from the results of the steps before."""
    monkeypatch.chdir(home)
    run = trained[0]
    engine_dir = q8trt.build_engine(run.path.name, max_batch=4)
    assert engine_dir == Path("runs", run.path.name, "engine")
    report = q8trt.benchmark(
        engine_dir, shapes="1x16,2x16", warmup=0, iterations=1, layer_times=False, backend="onnxruntime",
        output_dir=tmp_path, progress=False, max_eval_samples=5,
    )  # fmt: skip
    assert report.rows_evaluated == 5
    assert [(row.precision, len(row.latencies)) for row in report.rows] == [(q8trt.Precision.INT8_FP16, 2)]
    assert "QAT INT8+FP16" in report.to_markdown()
    assert report.to_html().startswith("<!doctype html>")
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["rows"][0]["precision"] == "int8+fp16"
    assert q8trt.lint_model(engine_dir).forecast.int8_gemms == 8
    [compared] = q8trt.parity(engine_dir, max_eval_samples=8, batch_sizes=[4])
    assert compared.stages[0].rows == 8
    assert compared.stages[0].stage == "torch FP32"
    packed = q8trt.pack(engine_dir, tmp_path / "engine.q8trt")
    unpacked = q8trt.unpack(packed.path, sha256=packed.sha256)
    (tmp_path / "rows.csv").write_text("sentence1,sentence2\nred dog,blue dog\n")
    summary = q8trt.predict(unpacked, tmp_path / "rows.csv", tmp_path / "scores.csv", device="cpu")
    assert (summary.rows, summary.rejected) == (1, 0)
    with q8trt.Engine.load(unpacked, device="cpu") as engine:
        assert len(engine.predict([("red dog", "blue dog")])) == 1
        computed = summary.backend, summary.device, summary.max_length
        assert computed == (engine.backend, engine.device, engine.limits.max_length)
    assert capfd.readouterr() == ("", "")


def test_calibration_of_the_newest_run(
    trained: tuple[q8trt.Run, Shown, list[str]], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(home)
    with caplog.at_level(logging.WARNING):
        run = q8trt.calibrate(output_dir=tmp_path / "ptq", recipe="attention", calibration_samples=8)
        result = q8trt.sensitivity(
            run.checkpoint("fp32"), data=FinetuneConfig.from_dict(trained[0].record.config).data, samples=4,
            calibration_samples=8, recipe="linear", output_dir=tmp_path / "costs",
        )  # fmt: skip
    assert list(run.scores) == ["fp32", "ptq"]
    assert result.files[0] == tmp_path / "costs" / "sensitivity.json"
    assert result.placement is None
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


def test_a_run_that_is_finished_is_not_resumed(
    trained: tuple[q8trt.Run, Shown, list[str]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(ConfigError, match=r"^no unfinished run under runs/"):
        q8trt.finetune(resume="newest")
    with pytest.raises(ConfigError, match=r"^resume continues a run with its own options"):
        q8trt.finetune(resume=trained[0], task="STS-B")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: q8trt.finetune(tsk="STS-B"), "unknown option 'tsk' (did you mean 'task'?); known: "),
        (lambda: q8trt.finetune(task="STS-B", seed="x"), "seed='x', expected int"),
        (lambda: q8trt.finetune(task="STS-B", qat=1), "qat=1, expected bool"),
        (lambda: q8trt.finetune(task="STS-B", recipe="fulll"), "unknown recipe 'fulll'"),
        (lambda: q8trt.build_engine("nowhere", precision="int9"), "unknown precision 'int9'; known: fp32, fp16, int8"),
        (lambda: q8trt.build_engine("nowhere"), "nowhere does not exist; expected a run folder"),
        (lambda: q8trt.benchmark("nowhere"), "engine folder nowhere does not exist"),
        (lambda: q8trt.benchmark("nowhere", shapes="1xy"), "--shapes has '1xy', expected"),
        (lambda: q8trt.lint_model("nowhere.onnx"), "nowhere.onnx"),
    ],
)
def test_errors_are_one_line(call: Any, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(q8trt.Q8TRTError) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_an_option_beside_the_config_that_holds_it() -> None:
    from q8trt.evaluation.config import BenchmarkConfig

    with pytest.raises(
        ConfigError, match=r"^iterations is a field of the BenchmarkConfig that was given; change it there"
    ):
        q8trt.benchmark("engine", config=BenchmarkConfig(), iterations=3)


def test_a_missing_package_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command installs whatever the extra lacks, not the first package alone."""
    from q8trt.training import execution

    def missing(config: FinetuneConfig) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    def version(package: str) -> str:
        if package in ("torch", "accelerate"):
            raise importlib.metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(execution, "load_inputs", missing)
    monkeypatch.setattr("q8trt.hardware.packages.version", version)
    with pytest.raises(q8trt.MissingPackageError, match=r"^torch is not installed: pip install accelerate torch$"):
        q8trt.finetune(task="STS-B")


@pytest.mark.parametrize("display", [True, False])
def test_figures_of_training_are_printed_where_progress_is_on(
    display: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from q8trt.console.progress import shown_by
    from q8trt.training.callbacks import TrainingLog

    state = SimpleNamespace(is_world_process_zero=True, max_steps=4, global_step=2)
    with shown_by(display):
        callback = TrainingLog("INT8")
        callback.on_train_begin(None, state, None)
        callback.on_log(None, state, None, logs={"eval_loss": 0.5})
        callback.close()
    assert capsys.readouterr().err.split() == (["INT8", "dev", "step", "2/4", "loss", "0.5"] if display else [])


def test_the_page_names_every_function() -> None:
    page = (Path(__file__).parents[1] / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)\(", page.partition("## Options")[0])) & {*q8trt.__all__}
    assert listed == {name for name in q8trt.__all__ if name.islower()}


def test_importing_is_cheap_and_names_are_complete() -> None:
    code = (
        "import sys, q8trt; before = len(sys.modules); q8trt.finetune, q8trt.benchmark; "
        "assert before < 100, before; assert not {'torch', 'transformers', 'onnx', 'onnx_ir', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
    assert all(getattr(q8trt, name) is not None for name in q8trt.__all__)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"taks": "STS-B", "seed": 1}, "unknown option 'taks' (did you mean 'task'?)"),
        ({"task": None}, "--task is missing"),
        ({"config": {"task": "STS-B"}}, "{'task': 'STS-B'} is not a FinetuneConfig"),
        ({"task": "STS-B", "label_list": "yes"}, "label_list='yes', expected a list or a tuple"),
        ({"task": "STS-B", "label_list": [0, 1]}, "label_list=0, expected str"),
        (
            {"task": "STS-B", "precision": "fp16"},
            "unknown --precision 'fp16'; known: fp32, int8",
        ),
        ({"resume": "newest", "seed": 1}, "resume continues a run with its own options"),
    ],
)
def test_what_a_keyword_cannot_be(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        q8trt.finetune(**keywords)
    assert str(error.value).startswith(message)


def test_shapes_are_pairs() -> None:
    with pytest.raises(ConfigError, match=r"shapes=1, expected tuple"):
        q8trt.benchmark("engine", shapes=[1, 128])
