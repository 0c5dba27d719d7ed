"""`q8trt gpu-check` rehearsed without a GPU: ONNX Runtime on the CPU in the GPU's place, tiny models, every verdict."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt.cli.gpu_check import run
from q8trt.cli.main import run_command
from q8trt.engine.config import PlanInfo
from q8trt.engine.manifest import ONNX_FILE, PLAN_FILE
from q8trt.engine.report import EngineReport
from q8trt.engine.shapes import ShapeProfile, covering
from q8trt.errors import BackendError, ConfigError, EngineError
from q8trt.gpu_check import bench as bench_module
from q8trt.gpu_check import models, random_models
from q8trt.gpu_check.bench import GpuBench
from q8trt.gpu_check.config import TOLERANCES, CheckConfig
from q8trt.gpu_check.journal import Journal, Outcome
from q8trt.gpu_check.repetition import repeat, share
from q8trt.gpu_check.run import slug
from q8trt.hardware.gpu import Gpu
from q8trt.quantization.precision import Precision
from q8trt.reporting.parity import Difference
from q8trt.runtime.base import Timing
from q8trt.runtime.onnxruntime.runner import OnnxRuntimeRunner

pytest_plugins = ["cli_fixtures"]
pytest.importorskip("onnx", reason="onnx is not installed")

TINY = CheckConfig(
    models=("minilm",), shapes=((1, 16), (4, 32)), warmup=2, iterations=3, max_seconds=5.0, random_rows=8, threads=3,
    loads=11, batch_size=4, max_drop_points=20.0,
)  # fmt: skip
REFUSAL = "TensorRT-RTX cannot load model.plan on a CPU: SM 9.0 is not supported"


class Rehearsed(OnnxRuntimeRunner):
    """The graph of an engine folder behind the interface of `TensorRTRunner`; says that it is a rehearsal."""

    def __init__(self, folder: Path, precision: str, graph: bool, offset: float = 0.0) -> None:
        self._arguments = (folder, precision, graph, offset)
        super().__init__(folder / ONNX_FILE, precision, threads=1)
        self._graph, self._offset = graph, offset

    def fork(self) -> Rehearsed:
        return Rehearsed(*self._arguments)

    def infer(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return super().infer(arrays) + np.float32(self._offset)

    def infer_timed(self, arrays: Mapping[str, Any]) -> Timing:
        started = time.perf_counter()
        self.infer(arrays)
        host = 1000 * (time.perf_counter() - started)
        return Timing(0.1 * host, 0.7 * host, 0.1 * host, 0.01, host, self._graph)


class CpuBench:
    """See `q8trt.gpu_check.bench.Bench`; labeled as the rehearsal that it is."""

    title, device, captures_graphs = "ONNX Runtime in TensorRT's place (rehearsal)", "cpu", True

    def __init__(self, **broken: Any) -> None:
        self.broken, self.opened, self.profiles = broken, 0, ()  # type: ignore[var-annotated]

    def build(self, folder: Path, profiles: tuple[ShapeProfile, ...]) -> PlanInfo:
        if folder.name == self.broken.get("build"):
            raise EngineError(f"the builder crashed (SIGSEGV) while it built {folder / ONNX_FILE}")
        self.profiles = profiles
        (folder / PLAN_FILE).write_bytes(bytes(2**20))
        report = EngineReport(source="rehearsal", profiles=len(profiles))
        return PlanInfo("tensorrt", "0", [], 0.5, 2**20, "none", None, report)

    def open(self, folder: Path, precision: str, cuda_graph: bool) -> Rehearsed:
        if self.broken.get("load"):
            raise EngineError(REFUSAL)
        if precision == self.broken.get("defect"):
            raise ZeroDivisionError("a defect\nof two lines")
        self.opened += 1
        offset = self.broken.get("offset", {}).get(precision, 0.0)
        return Rehearsed(folder, precision, cuda_graph and not self.broken.get("no_graph"), offset)

    def free_bytes(self) -> int:
        return 2**30 - self.opened * self.broken.get("leak", 0)

    def references(self, subject: Any, folders: dict[str, Path]) -> dict[str, Callable[[], Any]]:
        from q8trt.runtime.torch_runner import TorchRunner

        return {
            "torch FP32": functools.partial(TorchRunner, subject.float_model, "fp32"),
            "torch FP32 CUDA": functools.partial(TorchRunner, subject.float_model, "fp32", "cuda:0"),
        }


@pytest.fixture(autouse=True)
def plain_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is written after each step; only `test_the_whole_flow` looks at its drawings."""
    if request.node.name != "test_the_whole_flow":
        monkeypatch.setattr("q8trt.reporting.html.svg", lambda chart, title: "<svg></svg>")


@pytest.fixture(scope="module", autouse=True)
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each model and precision is exported once for this file's tests: the exporter takes seconds, and is tested elsewhere."""
    from q8trt.export import onnx as module
    from q8trt.export.options import ExportOptions

    cache, folder, export = {}, tmp_path_factory.mktemp("exports"), module.export_onnx

    def once(model: Any, path: Path, precision: str, names: Any, options: Any = None, batches: Any = ()) -> Any:
        key = f"{model.config.vocab_size}-{precision}"
        if key not in cache:
            cache[key] = export(model, folder / f"{key}.onnx", precision, names, ExportOptions("torchscript"), batches)
        shutil.copyfile(cache[key].path, path)
        return replace(cache[key], path=path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "export_onnx", once)
        yield


@pytest.fixture
def checked(calibrated: Path, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the command on the tiny run and a bench broken as told; its exit code and JSON."""

    def go(config: CheckConfig = TINY, **broken: Any) -> tuple[int, dict[str, Any]]:
        argv = ["--run", str(calibrated), "--data_dir", str(calibrated.parent / "data"), "--output_dir", str(tmp_path)]
        code = run(argv, CpuBench(**broken), config)
        return code, json.loads((tmp_path / "gpu-check.json").read_text())

    return go


def results(record: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["check"]: (check["result"], check["figure"]) for check in record["checks"]}


def test_the_whole_flow(
    checked: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(random_models, "SIZES", {"bert-base": (32, 2, 2, 64)})
    load = models.load_tokenizer
    monkeypatch.setattr(models, "load_tokenizer", lambda name: tiny_tokenizer if name == "minilm" else load(name))
    code, record = checked(replace(TINY, models=("minilm", "bert-base")))
    found = results(record)
    assert code == 0, found
    assert record["finished"]
    assert record["passed"]
    assert record["counts"] == {"passed": 24, "failed": 0, "measured": 18, "skipped": 2}
    assert "pearson x100 " in found["minilm: score INT8+FP16"][1]
    assert "bert-base: score FP32" not in found
    assert found["minilm: logits INT8+FP16"][1].startswith("to torch fake_quant: ")
    assert found["minilm: logits FP16"][1].startswith("to torch fp32: ")
    assert found["minilm: 3 threads over one engine"][1].startswith("36 answers, 0 wrong, ")
    assert "after 11 (growth 0.0, allowed 8)" in found["minilm: 11 loads"][1]
    assert "bert-base: 11 loads" not in found
    assert found["minilm: reference torch FP32 CUDA"][0] == "skipped"
    assert "; no CUDA graph: FP32 " in found["minilm: latency 4x32"][1]
    assert found["minilm: time by layer"] == ("measured", "3 of 3 engines at 4x32")
    out = capsys.readouterr().out
    assert "passed    minilm: build FP32: plan 1.0 MiB in 0.5 s" in out
    assert "24 passed, 0 failed, 18 measured, 2 skipped" in out
    page = (tmp_path / "gpu-check.html").read_text()
    assert "rehearsal" in page
    assert "<h1>minilm (real weights) on STS-B</h1>" in page
    assert "<dt>data</dt><dd>STS-B dev, 16 rows, " in page
    assert "<dt>recipe</dt><dd>" in page
    assert "<h1>bert-base (random weights) on STS-B</h1>" in page
    assert "<dt>data</dt><dd>STS-B, timing only</dd>" in page
    assert page.count("<h1>") == 3
    assert page.count("<details>") == 1


def test_report_of_a_model(checked: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    _, record = checked()
    rows = record["reports"]["minilm"]["rows"]
    assert [(row["name"], row["device"]) for row in rows] == [
        ("FP32", "cpu"), ("FP16", "cpu"), ("INT8+FP16", "cpu"),
        ("FP32", "cpu, no CUDA graph"), ("FP16", "cpu, no CUDA graph"), ("INT8+FP16", "cpu, no CUDA graph"),
        ("torch FP32", "cpu"),
    ]  # fmt: skip
    assert [row["layer_times"] is not None for row in rows] == [*[True] * 3, *[False] * 4]
    assert (rows[2]["layer_times"]["batch"], rows[2]["layer_times"]["sequence"]) == (4, 32)
    assert rows[2]["layer_times"]["layers"][0]["ms"] > 0
    assert rows[5]["label"] == "ONNX Runtime, CPU, no CUDA graph, int8+fp16"
    assert [each["cuda_graph"] for row in rows for each in row["latencies"][:1]] == [*[True] * 3, *[False] * 3, None]
    assert {(each["batch"], each["sequence"]) for row in rows for each in row["latencies"]} == {(1, 16), (4, 32)}
    assert set(rows[0]["latencies"][0]["parts"]) == {"h2d", "gpu", "d2h", "enqueue", "host"}
    assert rows[0]["latencies"][0]["gemm_tops"] > 0
    assert rows[5]["against"]["baseline"] == "FP32"
    graph, bare = (rows[index]["latencies"][1]["median_ms"] for index in (3, 5))
    assert rows[5]["against"]["median_latency_ratio"]["4x32"] == pytest.approx(bare / graph)
    assert [row["findings"] for row in rows[:3]] == [[], [], []]  # the run's recipe is gpu
    text = json.dumps(record)
    assert "/tmp" not in text
    assert record["provenance"]["command"].startswith("q8trt gpu-check --run ")


def test_a_refusal_is_the_result_and_the_references_are_timed(
    checked: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    code, record = checked(load=True)
    found = results(record)
    assert code == 1
    assert not record["passed"]
    for precision in ("FP32", "FP16", "INT8+FP16"):
        assert found[f"minilm: load {precision}"] == ("failed", REFUSAL)
    assert found["minilm: 3 threads over one engine"] == ("skipped", "no INT8+FP16 engine runs")
    assert found["minilm: latency 4x32"][0] == "measured"
    assert "minilm: time by layer" not in found
    assert [row["name"] for row in record["reports"]["minilm"]["rows"]] == ["torch FP32"]


def test_a_profiler_that_fails_costs_its_own_figures(
    checked: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, arrays: Any, iterations: int) -> Any:
        raise BackendError("TensorRT-RTX's profiler reported no layer")

    monkeypatch.setattr(Rehearsed, "layer_times", fails)
    code, record = checked()
    assert code == 0
    assert results(record)["minilm: time by layer"] == (
        "measured", "0 of 3 engines at 4x32; TensorRT-RTX's profiler reported no layer",
    )  # fmt: skip
    assert record["reports"]["minilm"]["rows"][0]["layer_times"] is None


def test_one_failed_build_keeps_the_rest(checked: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, record = checked(build="fp16")
    found = results(record)
    assert code == 1
    assert found["minilm: build FP16"][0] == "failed"
    assert found["minilm: build FP16"][1].endswith("/fp16/model.onnx")
    assert "/tmp" not in json.dumps(record)
    assert found["minilm: load FP16"] == ("skipped", "it was not built")
    assert record["counts"]["failed"] == 1
    assert {row["name"] for row in record["reports"]["minilm"]["rows"]} == {"FP32", "INT8+FP16", "torch FP32"}


def test_a_defect_is_a_line_and_its_traceback_is_logged(
    checked: Callable[..., tuple[int, dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    code, record = checked(defect="int8+fp16")
    assert code == 1
    assert results(record)["minilm: load INT8+FP16"] == ("failed", "ZeroDivisionError: a defect of two lines")
    assert "minilm: load INT8+FP16" in caplog.text
    assert results(record)["minilm: latency 1x16"][0] == "measured"


@pytest.mark.parametrize(
    ("broken", "check", "said"),
    [
        ({"offset": {"fp16": 0.04}}, "minilm: logits FP16", "to torch fp32: 0.04"),
        ({"offset": {"int8+fp16": 2.0}}, "minilm: logits INT8+FP16", "(allowed 1.5, 0.1)"),
        ({"offset": {"fp32": float("nan")}}, "minilm: logits FP32", "16 of 16 logits are not finite"),
        ({"leak": 2**25}, "minilm: 11 loads", "(growth 32.0, allowed 8)"),
        ({"no_graph": True}, "minilm: latency 1x16", "; no CUDA graph was launched for FP32, FP16, INT8+FP16"),
    ],
)
def test_what_is_wrong_fails(
    checked: Callable[..., tuple[int, dict[str, Any]]], broken: dict[str, Any], check: str, said: str
) -> None:
    code, record = checked(replace(TINY, shapes=((4, 32), (1, 16))), **broken)
    assert code == 1
    assert results(record)[check][0] == "failed"
    assert said in results(record)[check][1]
    assert {name for name, (result, _) in results(record).items() if result == "failed"} <= {
        check, "minilm: latency 4x32"
    }  # fmt: skip


def test_a_lower_score_fails(checked: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    _, record = checked(replace(TINY, max_drop_points=-1e-3))
    assert results(record)["minilm: score FP32"][0] == "failed"


def test_results_are_written_after_each_step(calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("q8trt.gpu_check.checks.share", interrupted)
    argv = ["--run", str(calibrated), "--data_dir", str(calibrated.parent / "data"), "--output_dir", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        run(argv, CpuBench(), TINY)
    record = json.loads((tmp_path / "gpu-check.json").read_text())
    assert "minilm: score INT8+FP16" in results(record)
    assert not record["finished"]
    assert not record["passed"]
    assert "not finished" in (tmp_path / "gpu-check.html").read_text()


def test_a_model_that_cannot_be_made_does_not_keep_the_others_from_it(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**options: Any) -> Any:
        raise BackendError("the demo failed")

    monkeypatch.setattr("q8trt.api.finetune", fails)
    monkeypatch.setattr(models.Models, "at_random", lambda self, name: self.of_run(name))
    code = run(["--output_dir", str(tmp_path)], CpuBench(), replace(TINY, models=("minilm", "bert-base")))
    found = results(json.loads((tmp_path / "gpu-check.json").read_text()))
    assert code == 1
    assert found == {f"{name}: model": ("failed", "the demo failed") for name in ("minilm", "bert-base")}


def test_without_a_run_the_demo_makes_one(calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def demo(output_dir: str, **options: Any) -> None:
        asked.append(options)
        Path(output_dir).parent.mkdir(parents=True)
        Path(output_dir).symlink_to(calibrated)

    monkeypatch.setattr("q8trt.api.finetune", demo)
    monkeypatch.chdir(tmp_path)
    run(["--quick"], CpuBench(), replace(TINY, precisions=(Precision.FP32,), shapes=((1, 32),)))
    assert [(options["sample"], options["recipe"]) for options in asked] == [(True, "full")]
    (written,) = (tmp_path / "benchmarks" / "results").glob("cpu-20??-??-??/gpu-check.json")
    found = results(json.loads(written.read_text()))
    assert "built-in sample, not GLUE" in found["minilm: score FP32"][1]
    assert found["minilm: model"][1] == "real weights, 400 rows of built-in sample (not GLUE)"


def test_no_gpu_is_one_line_that_says_what_would_be_run(refused: Callable[..., str], monkeypatch: Any) -> None:
    monkeypatch.setattr(bench_module, "gpus", lambda: [])
    line = refused("gpu-check")
    assert "no NVIDIA GPU here (the driver lists none); nothing was run; the check is: fp32, fp16, int8+fp16" in line
    assert "minilm, bert-base, bert-large" in line
    assert "128x32" in line
    assert "8 threads over one engine, 100 loads" in line
    assert "bert" not in refused("gpu-check", "--quick")


def test_bad_input_is_one_line(refused: Callable[..., str], monkeypatch: Any, calibrated: Path) -> None:
    monkeypatch.setattr(bench_module, "gpus", lambda: [Gpu("NVIDIA L4", "8.9", 24000, "570")])

    def absent(name: str | None) -> Any:
        raise BackendError("TensorRT is not installed: pip install it")

    assert "unknown backend 'tensort'" in refused("gpu-check", "--backend", "tensort")
    monkeypatch.setattr(bench_module, "find_backend", absent)
    assert "TensorRT is not installed: pip install it; nothing was run" in refused("gpu-check")
    assert "--data_dir nowhere is not a folder" in refused("gpu-check", "--data_dir", "nowhere")
    assert "test_gpu_check.py is a file" in refused("gpu-check", "--output_dir", __file__)
    assert "nowhere is not a run folder" in refused("gpu-check", "--run", "nowhere")


def test_an_unfinished_run_is_refused(refused: Callable[..., str], calibrated: Path, tmp_path: Path) -> None:
    record = json.loads((calibrated / "run.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"stages": {"fp32": record["stages"]["fp32"]}}))
    assert "run has no finished quantized checkpoint" in refused("gpu-check", "--run", "run")
    record["config"]["data"]["task"] = "MRPC"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert "run has the task MRPC, and the built-in sample is STS-B's; give --data_dir" in refused(
        "gpu-check", "--run", "run"
    )


def test_a_thread_whose_answers_differ_is_seen() -> None:
    class Wrong:
        def __init__(self, wrong: float) -> None:
            self.wrong = wrong

        def fork(self) -> Any:
            return Wrong(next(forks))

        def infer(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
            return batch["x"] + self.wrong

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *arguments: Any) -> None:
            pass

    batches = [{"x": np.full((2, 1), value, np.float32)} for value in (0.0, 5.0)]
    for wrong, count in ((0.0, 0), (0.0015, 3), (0.1, 6), (float("nan"), 6)):  # 0.0015 is within 0.1% of 5, not of 0
        forks = iter((0.0, wrong))
        outcome = share(Wrong(0.0), batches, 2)
        assert (outcome.passed, outcome.details["wrong"], outcome.details["answers"]) == (not count, count, 12)


def test_loads_compare_with_the_tenth() -> None:
    free = iter([100, *[90] * 10, 81, 80])
    outcome = repeat(lambda: None, lambda: next(free) * 2**20, 12, 10.0)
    assert outcome.passed
    assert outcome.details["growth_mib"] == 10
    with pytest.raises(BackendError, match="10 loads cannot show a leak"):
        repeat(lambda: None, lambda: 0, 10, 1.0)


def test_journal_tells_optional_from_failed() -> None:
    def absent() -> Outcome[int]:
        raise BackendError("/secret/x is not here")

    seen: list[str] = []
    journal = Journal(lambda each: seen.append(each.checks[-1].result), hidden="/secret/")
    assert journal.attempt("a", absent, optional=True) is None
    assert not journal.failed
    assert journal.checks[0].figure == "x is not here"
    assert journal.attempt("b", lambda: Outcome("7 ms", value=7)) == 7
    assert journal.attempt("c", absent) is None
    assert journal.failed
    assert seen == ["skipped", "measured", "failed"]


def test_configuration() -> None:
    config = CheckConfig()
    assert [(profile.opt, profile.max) for profile in config.profiles] == [
        ((32, 32), (128, 32)),
        ((32, 128), (128, 128)),
    ]
    assert all(covering(config.profiles, shape) is not None for shape in config.shapes)
    assert {(batch, 128) for batch in (1, 8, 32, 128)} < set(config.shapes)
    assert all(set(each) == set(config.precisions) for each in TOLERANCES.values())
    assert Difference.between(np.array([1.0, 2.0]), np.array([1.5, 2.25])) == Difference(0.5, 0.375)
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_the_gpu_bench_builds_with_the_real_builder(tmp_path: Path, monkeypatch: Any, tiny_model: Any) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from q8trt.export.onnx import export_onnx

    monkeypatch.setattr(bench_module, "gpus", lambda: [Gpu("NVIDIA L4", "8.9", 24000, "570")])
    export_onnx(tiny_model(), tmp_path / ONNX_FILE, "fp32", ("input_ids", "attention_mask", "token_type_ids"))
    bench = GpuBench("rtx")
    assert bench.title.startswith("TensorRT-RTX ")
    assert not bench.captures_graphs
    assert bench.build(tmp_path, TINY.profiles).bytes == (tmp_path / PLAN_FILE).stat().st_size > 0
    assert GpuBench("rtx", ("8.9",)).build(tmp_path, TINY.profiles).sm_targets == ["8.9"]
    with pytest.raises(ConfigError, match=r"has no SM 9\.0; it builds for"):
        GpuBench("rtx", ("9.0",))
    monkeypatch.setattr(bench_module, "gpus", lambda: [Gpu("NVIDIA H100", "9.0", 81559, "580")])
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* NVIDIA H100 has 9\.0: use TensorRT there"):
        GpuBench("rtx")


def test_shared_random_models(tiny_batch: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(random_models, "SIZES", {"bert-base": (32, 2, 2, 64)})
    batch = {name: tensor.numpy() for name, tensor in tiny_batch().items()}
    float_model, quantized = models.random_pair("bert-base", "full", [batch])
    weights = dict(quantized.named_parameters())
    assert all(np.isfinite(weight.detach().numpy()).all() for weight in weights.values())
    again = dict(random_models.random_model("bert-base").named_parameters())
    assert all((weight == again[name]).all() for name, weight in float_model.named_parameters())
    assert any("quantizer" in name for name, _ in quantized.named_modules())


def test_help_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("gpu-check", ["--help"])
    assert "example: q8trt gpu-check --quick" in capsys.readouterr().out
