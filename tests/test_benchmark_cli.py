"""`benchmark.py` from end to end on ONNX Runtime: files, JSON on stdout, gate and exit codes, refusals."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_data import write_sts_b

from q8trt.cli.main import run_command
from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
from q8trt.engine.manifest_file import load_manifest, write_manifest
from q8trt.errors import BackendError
from q8trt.evaluation import benchmark as comparison
from q8trt.quantization.precision import Precision
from q8trt.reporting import Row
from q8trt.runtime import RunOptions, open_runner
from q8trt.runtime.onnxruntime.runner import FP16_ON_CPU, OnnxRuntimeRunner

pytestmark = pytest.mark.usefixtures("quick_export")

if TYPE_CHECKING:
    from cli_fixtures import Refused

pytest_plugins = ("cli_fixtures",)
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
QUICK = ["--shapes", "1x8,2x16", "--warmup", "1", "--iterations", "3", "--backend", "onnxruntime"]


@pytest.fixture(scope="module")
def built(
    tiny_model: Callable[..., Any],
    tiny_quantized: Callable[..., Any],
    tiny_tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the engines "fp32" and "int8", without plans, and "data". Do not change it."""
    from q8trt.export.onnx import export_onnx

    root = tmp_path_factory.mktemp("engines")
    for precision, model in (("fp32", tiny_model()), ("int8", tiny_quantized()[0])):
        folder = root / precision
        folder.mkdir()
        export_onnx(model, folder / "model.onnx", precision, INPUTS)
        tiny_tokenizer.save_pretrained(folder)
        manifest = Manifest(
            TaskInfo("STS-B", [], True, True, "pearson"), ModelInfo("tiny", "bert", 1, 64, 0, 32), Precision(precision),
            {"name": "linear"} if precision == "int8" else None, INPUTS, 20,
            stage=precision, metrics={"torch_fp32": {"dev": {"pearson": 0.9}}},
        )  # fmt: skip
        write_manifest(folder, manifest)
    write_sts_b(root / "data")
    return root


@pytest.fixture
def argv(built: Path, tmp_path: Path) -> list[str]:
    """Both engines, scored and timed; the report goes to `tmp_path`."""
    engines = ["--engine", str(built / "fp32"), "--engine", str(built / "int8")]
    data = ["--task", "STS-B", "--data_dir", str(built / "data"), "--max_seq_length", "32"]
    return [*engines, *data, *QUICK, "--output_dir", str(tmp_path / "out")]


def test_one_run_leaves_three_files_and_json_as_its_last_line(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("benchmark", [*argv, "--json", "--buckets", "8,16,32"]) == 0
    out = capsys.readouterr().out
    data = json.loads(out.splitlines()[-1])
    assert data == json.loads((tmp_path / "out/benchmark.json").read_text())
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".md", ".html"}
    assert (data["schema"], data["gate"], data["gpus"]) == (2, None, [])
    fp32, int8 = data["rows"]
    for row in (fp32, int8):
        assert row["label"].startswith("ONNX Runtime, CPU")
        assert (row["lengths"]["rows"], row["lengths"]["buckets"]) == (data["rows_evaluated"], [8, 16, 32])
        for latency in row["latencies"]:
            # 2 layers of hidden size 32 and 64 in between.
            tokens = latency["sequence"]
            flop = latency["batch"] * 2 * (2 * tokens * (4 * 32**2 + 2 * 32 * 64) + 4 * tokens**2 * 32)
            assert latency["gemm_tops"] == pytest.approx(flop / latency["median_ms"] / 1e9)
            assert (latency["clock"], latency["peak_share"], latency["iterations"]) == ("host", None, 3)
    assert int8["fp32_metrics"] == {"pearson": 0.9}
    assert fp32["findings"] == []  # FP32 is not meant to be quantized
    assert int8["findings"]
    assert int8["folder"].endswith("int8")
    assert (int8["model"], int8["recipe"], int8["run"]) == ("tiny", "linear", int8["folder"])  # in no run
    assert fp32["recipe"] == ""
    said = out[: out.rindex("\n{")].splitlines()
    assert said[-1].startswith("report: ")
    assert " ".join(said[said.index("Verdict") + 1 : -1]).endswith("they do not forecast a GPU's")
    assert "Times are the " not in out


def test_layers_are_profiled_at_the_largest_shape(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q8trt.runtime.onnxruntime.graph.saturates", lambda: True)
    assert run_command("benchmark", [*argv, "--no_accuracy"]) == 0
    data = json.loads((tmp_path / "out/benchmark.json").read_text())
    for row in data["rows"]:
        times = row["layer_times"]
        assert (times["batch"], times["sequence"], times["iterations"]) == (2, 16, 10)
        assert any("intermediate.dense" in layer["name"] for layer in times["layers"])
    assert "Time by layer, QAT INT8, 2x16" in (tmp_path / "out/benchmark.html").read_text()
    assert any(note.startswith("this CPU has no VNNI instructions, and INT8 gains less here") for note in data["notes"])
    capsys.readouterr()

    def fails(self: Any, arrays: Any, iterations: int) -> Any:
        raise BackendError("no profiler")

    monkeypatch.setattr(OnnxRuntimeRunner, "layer_times", fails)
    monkeypatch.setattr("q8trt.runtime.onnxruntime.graph.saturates", lambda: False)
    assert run_command("benchmark", [*argv, "--no_accuracy"]) == 0
    assert "Note: QAT INT8 on ONNX Runtime, CPU: no layer times: no profiler" in " ".join(
        capsys.readouterr().out.split()
    )
    assert run_command("benchmark", [*argv, "--no_accuracy", "--no_layer_times"]) == 0
    said = capsys.readouterr().out
    assert "layer times" not in said
    assert "replacing the existing report " in said
    data = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert {row["layer_times"] for row in data["rows"]} == {None}
    assert not any("VNNI" in note for note in data["notes"])


def test_fp16_on_a_cpu_says_nothing_of_a_gpu() -> None:
    def notes(device: str, precision: str) -> list[str]:
        row = types.SimpleNamespace(backend="onnxruntime", device=device, precision=Precision(precision))
        return [note for note in comparison.caveats([], [row]) if "FP16" in note]

    assert notes("cpu", "int8+fp16") == notes("cpu", "fp16") == [FP16_ON_CPU]
    assert notes("cpu", "int8") == notes("NVIDIA L4", "fp16") == []


def test_a_cpu_without_vnni_is_named_only_beside_int8(
    argv: list[str], built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q8trt.runtime.onnxruntime.graph.saturates", lambda: True)
    alone = [each for each in argv if each != str(built / "int8")]
    alone.pop(2)
    assert run_command("benchmark", [*alone, "--no_accuracy"]) == 0
    assert not any("VNNI" in note for note in json.loads((tmp_path / "out/benchmark.json").read_text())["notes"])


def test_scores_and_throughput_are_of_the_same_buckets(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: set[tuple[int, ...]] = set()
    infer = OnnxRuntimeRunner.infer

    def seen(self: Any, arrays: Any) -> Any:
        shapes.add(arrays["input_ids"].shape)
        return infer(self, arrays)

    monkeypatch.setattr(OnnxRuntimeRunner, "infer", seen)
    assert (
        run_command("benchmark", [*argv, "--buckets", "20,32", "--no_layer_times", "--per_device_eval_batch_size", "4"])
        == 0
    )
    assert {length for _, length in shapes - {(1, 8), (2, 16)}} == {20, 32}  # those two are timed
    rows = json.loads((tmp_path / "out/benchmark.json").read_text())["rows"]
    assert rows[0]["lengths"]["buckets"] == [20, 32]


def test_how_plans_are_run_is_passed_on(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def opened(folder: Path, backend: str, shapes: Any, options: Any) -> Any:
        seen.append((shapes, options))
        return open_runner(folder, backend)

    monkeypatch.setattr("q8trt.evaluation.benchmark.open_runner", opened)
    timing = [*argv, "--no_accuracy", "--no_layer_times"]
    for more in ([], ["--no_cuda_graph", "--runtime_cache", "kept"]):
        assert run_command("benchmark", [*timing, *more]) == 0
    shapes = ((1, 8), (2, 16))
    assert seen[::2] == [
        (shapes, RunOptions(cuda_graph=True, specialization="eager")),
        (shapes, RunOptions(cuda_graph=False, runtime_cache="kept", specialization="eager")),
    ]


def test_a_grid_in_place_of_shapes(argv: list[str], tmp_path: Path) -> None:
    argv = [each for each in argv if each not in ("--shapes", "1x8,2x16")]
    options = ["--batch_sizes", "1,2", "--seq_lengths", "8,16", "--no_accuracy"]
    assert run_command("benchmark", [*argv, *options]) == 0
    (row, _) = json.loads((tmp_path / "out/benchmark.json").read_text())["rows"]
    shapes = [(latency["batch"], latency["sequence"]) for latency in row["latencies"]]
    assert shapes == [(1, 8), (2, 8), (1, 16), (2, 16)]
    assert row["lengths"] is None
    assert "Throughput against sequence, batch 2" in (tmp_path / "out/benchmark.html").read_text()


def test_gate_decides_the_exit_code(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("benchmark", [*argv, "--max_drop", "200", "--min_speedup", "0.0001"]) == 0
    *_, files, gate = capsys.readouterr().out.splitlines()
    assert files.startswith("report: ")
    assert gate == (
        "gate:   passed, at most 200 points of pearson lost against FP32 and at least 0.0001x as fast as FP32 at each shape"
    )
    assert "> **Gate passed**" in (tmp_path / "out/benchmark.md").read_text()
    assert run_command("benchmark", [*argv, "--max_drop", "-200", "--min_speedup", "1000"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("benchmark: gate not passed: QAT INT8 on ONNX Runtime, CPU loses ")
    assert "more than --max_drop -200" in error
    assert "as fast as FP32 at 2x16, less than --min_speedup 1000" in error
    gate = json.loads((tmp_path / "out/benchmark.json").read_text())["gate"]
    assert (gate["passed"], len(gate["failures"])) == (False, 3)
    assert "<b>Gate not passed</b>" in (tmp_path / "out/benchmark.html").read_text()


def test_gate_of_int8_alone_counts_from_torchs_score(
    argv: list[str], built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("benchmark", [*argv[2:], "--max_drop", "-200"]) == 1
    assert "against torch FP32 as recorded in its run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engines", "options", "says"),
    [
        (
            ["fp32"],
            ["--max_drop", "1"],
            "--max_drop compares INT8 and FP16 engines with FP32, but all engines are FP32",
        ),
        (["fp32"], ["--min_speedup", "1"], "--min_speedup compares INT8 and FP16 engines"),
        (["int8"], ["--min_speedup", "1"], "--min_speedup needs an FP32 engine"),
        (["fp32", "int8"], ["--no_accuracy", "--max_drop", "1"], "--max_drop needs the score"),
        (["fp32", "int8"], ["--min_speedup", "0"], "--min_speedup 0.0, expected a positive factor"),
        (["int8"], ["--batch_sizes", "1"], "--batch_sizes and --seq_lengths make a grid together"),
        (["int8"], ["--batch_sizes", "1", "--seq_lengths", "8", "--shapes", "1x8"], "exclude each other"),
        (["int8"], ["--batch_sizes", "0", "--seq_lengths", "8"], "--batch_sizes '0', expected"),
        (["int8"], ["--buckets", "16,16"], "--buckets '16,16', expected"),
        (["int8"], ["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0, expected 1 or more"),
        (["int8"], ["--output_dir", __file__], "is a file"),
        (["int8"], ["--output_dir", f"{__file__}/deep/er"], "/deep/er cannot be written: "),
        (["int8"], ["--name", "a/b"], "--name 'a/b', expected the stem of a file, without a folder"),
        (["int8"], ["--name", ""], "--name '', expected"),
        (["int8"], ["--duration", "90"], "--duration 90.0, expected from 0 to below --max_seconds 60"),
    ],
)
def test_refusals(engines: list[str], options: list[str], says: str, built: Path, refused: Refused) -> None:
    chosen = [argument for name in engines for argument in ("--engine", str(built / name))]
    accuracy = [] if "--no_accuracy" in options else ["--task", "STS-B", "--data_dir", str(built / "data")]
    assert says in refused("benchmark", *chosen, *accuracy, *options)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
    built: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *arguments: False)
    line = refused("benchmark", "--engine", str(built / "int8"), "--output_dir", "locked/out")
    assert "--output_dir locked/out cannot be written: no permission for " in line


def test_max_drop_without_any_fp32_score(built: Path) -> None:
    from q8trt.engine.folder import EngineFolder
    from q8trt.errors import ConfigError
    from q8trt.evaluation.benchmark import check_gate
    from q8trt.reporting import Gate
    from q8trt.tasks.data import DataConfig

    manifest = replace(load_manifest(built / "int8"), metrics={})
    with pytest.raises(ConfigError, match="records none; add an FP32 engine with --engine"):
        check_gate(Gate(max_drop=1.0), [EngineFolder(built / "int8", manifest)], DataConfig("STS-B", sample=True))
    check_gate(Gate(), [EngineFolder(built / "fp32", load_manifest(built / "fp32"))], None)


def test_rows_of_one_name_differ_by_a_fact() -> None:
    def named(*facts: tuple[str, str, str]) -> list[str]:
        rows = [
            Row(
                "PTQ INT8",
                "ONNX Runtime, CPU",
                "onnxruntime",
                "cpu",
                Precision.INT8,
                {},
                recipe=recipe,
                run=run,
                folder=folder,
            )
            for recipe, run, folder in facts
        ]
        other = Row("PTQ INT8", "TensorRT, L40S", "tensorrt", "L40S", Precision.INT8, {}, recipe="gpu")
        fp32 = Row("FP32", "ONNX Runtime, CPU", "onnxruntime", "cpu", Precision.FP32, {})
        *names, last, first = (row.name for row in comparison.distinct([*rows, other, fp32]))
        assert (last, first) == ("PTQ INT8", "FP32")
        return names

    assert named(("gpu", "runs/a", "runs/a/e")) == ["PTQ INT8"]
    assert named(("gpu", "runs/a", "runs/a/e"), ("full", "runs/b", "runs/b/e")) == ["PTQ INT8 gpu", "PTQ INT8 full"]
    assert named(("gpu", "runs/a", "runs/a/e"), ("gpu", "runs/b", "runs/b/e")) == ["PTQ INT8 a", "PTQ INT8 b"]
    assert named(("gpu", "runs/a", "runs/a/e"), ("gpu", "runs/a", "runs/a/f")) == ["PTQ INT8 e", "PTQ INT8 f"]
    assert named(*[("gpu", "runs/a", "runs/a/e")] * 2) == ["PTQ INT8"] * 2
