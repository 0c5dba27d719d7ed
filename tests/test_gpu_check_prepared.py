"""`q8trt gpu-check --prepare` and `--prepared`, rehearsed on the CPU: a tiny model, the budget, and what may go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8trt.cli import gpu_check as command
from q8trt.cli.main import run_command
from q8trt.errors import ConfigError
from q8trt.export import onnx as module
from q8trt.export.onnx import export_onnx
from q8trt.gpu_check import random_models
from q8trt.gpu_check.prepared import prepare as preparation
from q8trt.gpu_check.prepared.kit import KIT_FILE, Kind, Kit, Step, read_kit
from q8trt.gpu_check.prepared.prepare import KitConfig, prepare, steps
from q8trt.gpu_check.prepared.schedule import run_kit
from q8trt.runs.run import open_run

pytest_plugins = ["cli_fixtures"]
pytest.importorskip("onnx", reason="onnx is not installed")

MACHINE = "gpu_check_fakes:CpuMachine"
TINY = {"bert-base": (32, 2, 2, 64), "mpnet-base": (32, 2, 2, 64)}
SMALL = KitConfig(
    batches=(1, 4), length=16, lengths=((2, 8),), large=False, iterations=3, loads=11,
    build_s={"minilm": 1.0, "bert-base": 1.0, "bert-large": 1.0, "mpnet-base": 1.0},
)  # fmt: skip


def by_torchscript(model: Any, path: Path, precision: str, names: Any, options: Any, batches: Any = ()) -> Any:
    """The quicker exporter, which gives the same file."""
    return export_onnx(model, path, precision, names, replace(options, exporter="torchscript"), batches)


@pytest.fixture(scope="module")
def kit_folder(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A prepared check of a tiny model."""
    folder = tmp_path_factory.mktemp("prepared") / "kit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_models, "SIZES", TINY)
        patch.setattr(module, "export_onnx", by_torchscript)
        prepare(
            open_run(calibrated), str(calibrated.parent / "data"), folder, {"commit": "c"}, lambda text: None, SMALL
        )
    return folder


def go(
    folder: Path, results: Path, kit: Kit | None = None, budget: float = 400.0, resume: bool = False, **broken: str
) -> tuple[dict[str, tuple[str, str]], dict[str, Any]]:
    """Run a kit; returns step -> (result, figure), and the JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("Q8TRT_TEST_BROKEN", json.dumps(broken))
        run_kit(kit or read_kit(folder), folder, results, budget, {}, lambda text: None, MACHINE, resume=resume)
    record = json.loads((results / "gpu-check.json").read_text())
    return {check["check"]: (check["result"], check["figure"]) for check in record["checks"]}, record


def only(kit: Kit, *names: str, **changes: Any) -> Kit:
    """A kit of some of the steps."""
    return replace(kit, steps=tuple(replace(kit.step(name), **changes) for name in names))


def test_the_whole_rehearsal(kit_folder: Path, tmp_path: Path) -> None:
    kit = read_kit(kit_folder)
    left_out = ("unfused", "linear", "without softmax_out", "one weight scale", "other lengths", "FP32")
    kit = only(kit, *(step.name for step in kit.steps if not any(name in step.name for name in left_out)))
    found, record = go(kit_folder, tmp_path, kit)
    assert list(found) == [step.name for step in kit.steps]
    assert not [each for each in found.items() if each[1][0] not in ("passed", "measured")]
    assert record["finished"]
    assert record["passed"]
    assert record["device"] == "cpu"
    assert record["prepared"] == {"commit": "c"}
    result, figure = found["build minilm INT8+FP16"]
    assert result == "passed"
    assert "forecast holds for" in figure
    assert "to torch INT8+FP16: " in figure
    assert "; Pearson x100 engine " in figure
    check = next(each for each in record["checks"] if each["check"] == "build bert-base INT8+FP16")
    assert check["details"]["forecast"]["agreements"]["GEMM"] == 8, "QKV in one"
    assert check["details"]["against"]["INT8+FP16"]["largest"] < 0.1
    assert found["latency bert-base 16 tokens"][1].startswith("1x16: bert-base FP16 ")
    assert found["torch FP16 bert-base"][0] == "measured"
    assert found["8 threads over one engine"][1].startswith("192 answers, 0 wrong")
    assert found["11 loads"][0] == "passed"
    assert found["length buckets"][0] == "measured"
    assert "tokens a row: minilm FP16 " in found["length buckets"][1]
    mpnet = next(each for each in record["checks"] if each["check"] == "build mpnet-base INT8+FP16 at 4x16")
    assert mpnet["details"]["against"]["INT8+FP16"]["largest"] < 0.1, "no token types, a bias of relative positions"
    for name in ("layers/minilm-int8-fp16.json", "layers/minilm-int8-fp16-forecast.json", "logs/minilm-int8-fp16.log"):
        assert (tmp_path / name).is_file()
    page = (tmp_path / "gpu-check.html").read_text()
    assert "Forecast against the plan" in page
    assert "Latency" in page


def test_one_crash_costs_one_step_and_a_hang_is_stopped(kit_folder: Path, tmp_path: Path) -> None:
    kit = only(
        read_kit(kit_folder), "build minilm FP16", "build minilm INT8+FP16", "build bert-base FP16",
        "build bert-base INT8+FP16", "latency bert-base 16 tokens",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("q8trt.gpu_check.prepared.schedule._LEAST_PATIENCE_S", 3.0)
        found, record = go(
            kit_folder, tmp_path, kit, **{"minilm-fp16": "crash", "minilm-int8": "hang", "bert-base-fp16": "refuse"}
        )
    assert found["build minilm FP16"][0] == "failed"
    assert found["build minilm FP16"][1].startswith("crashed (SIGABRT)")
    assert found["build minilm INT8+FP16"] == ("failed", "stopped after 3 s")
    assert found["build bert-base FP16"] == ("failed", "the parser refused the graph")
    assert found["build bert-base INT8+FP16"][0] == "measured"
    assert found["latency bert-base 16 tokens"][0] == "measured"
    assert found["latency bert-base 16 tokens"][1].endswith("; not built: bert-base FP16")
    assert record["counts"] == {"passed": 0, "failed": 3, "measured": 2, "skipped": 0, "not reached": 0}
    assert not record["passed"]
    assert not list((tmp_path / "plans").glob("*.partial")), "a plan is there only whole"


def test_a_budget_that_ends_early(kit_folder: Path, tmp_path: Path) -> None:
    """A step begins only if it can end in time; a shorter one behind it may; what needs a plan not reached is not begun."""
    kit = read_kit(kit_folder)
    names = ("build minilm FP16", "build bert-base FP16", "build bert-base INT8+FP16", "latency bert-base 16 tokens")
    kit = only(kit, *names)
    kit = replace(
        kit,
        steps=tuple(
            replace(step, estimate_s=seconds) for step, seconds in zip(kit.steps, (5.0, 500.0, 500.0, 5.0), strict=True)
        ),
    )
    found, record = go(kit_folder, tmp_path, kit, budget=60.0)
    assert found["build minilm FP16"][0] == "passed"
    assert found["build bert-base FP16"][0] == "not reached"
    assert found["build bert-base FP16"][1].startswith("takes 500 s, ")
    assert found["latency bert-base 16 tokens"] == ("not reached", "none of its engines was reached")
    assert record["counts"]["not reached"] == 3
    assert record["finished"]
    assert not record["passed"]


def test_results_are_on_disk_when_a_step_ends(kit_folder: Path, tmp_path: Path) -> None:
    kit, seen = only(read_kit(kit_folder), "build minilm FP16", "build bert-base FP16"), []

    def look(text: str) -> None:
        if (tmp_path / "gpu-check.json").is_file():
            seen.append(len(json.loads((tmp_path / "gpu-check.json").read_text())["checks"]))

    run_kit(kit, kit_folder, tmp_path, 300.0, {}, look, MACHINE)
    assert seen == [1, 2]
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["00.json", "01.json"]


def test_a_check_in_two_calls(kit_folder: Path, tmp_path: Path) -> None:
    """The second call keeps what the first one did, and does again what failed, what was not reached and what lost its plan."""
    names = ("build minilm FP16", "build minilm INT8+FP16", "build bert-base FP16", "build bert-base INT8+FP16")
    kit = only(read_kit(kit_folder), *names)
    kit = replace(kit, steps=(*kit.steps[:3], replace(kit.steps[3], estimate_s=500.0)))
    first, _ = go(kit_folder, tmp_path, kit, **{"minilm-fp16": "refuse"})
    assert [result for result, _ in first.values()] == ["failed", "passed", "measured", "not reached"]
    (tmp_path / "plans" / "bert-base-fp16.plan").unlink()
    before = (tmp_path / "plans" / "minilm-int8-fp16.plan").stat().st_mtime_ns
    second, record = go(kit_folder, tmp_path, kit, budget=1000.0, resume=True)
    assert [result for result, _ in second.values()] == ["passed", "passed", "measured", "measured"]
    assert (tmp_path / "plans" / "minilm-int8-fp16.plan").stat().st_mtime_ns == before
    assert (tmp_path / "plans" / "bert-base-fp16.plan").is_file()
    assert record["passed"]
    other = replace(kit, provenance={"commit": "another"})
    with pytest.raises(ConfigError, match="has the results of another prepared check; run the check without --resume"):
        go(kit_folder, tmp_path, other, resume=True)
    (tmp_path / "gpu-check.json").write_text('{"schema": 2, "checks": [1]}')
    with pytest.raises(ConfigError, match=r"gpu-check\.json is damaged: .*; run the check without --resume"):
        go(kit_folder, tmp_path, kit, resume=True)


def test_no_gpu_is_a_failed_step_of_one_line(kit_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    kit = only(read_kit(kit_folder), "build minilm FP16")
    progress = run_kit(kit, kit_folder, tmp_path, 300.0, {}, lambda text: None)
    (check,) = progress.checks
    assert check.result == "failed"
    assert "\n" not in check.figure


def test_files_are_of_the_same_block(kit_folder: Path) -> None:
    """So that a folder packs to little more than MiniLM's files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_models, "SIZES", TINY)
        patch.setattr(random_models, "_BLOCK", 16)
        tiled = dict(random_models.tiled_model("bert-base").named_parameters())
    dense = tiled["bert.encoder.layer.1.intermediate.dense.weight"].detach().numpy()
    np.testing.assert_array_equal(dense[:16, :16], dense[48:, 16:])
    other = tiled["bert.encoder.layer.0.attention.self.query.weight"].detach().numpy()
    np.testing.assert_array_equal(dense[:16, :16], other[16:, :16])
    assert dense.std() == pytest.approx(0.02, rel=0.2)


def test_the_order_is_that_of_value() -> None:
    listed = list(steps(KitConfig()))
    names = [step.name for step in listed]
    assert names[:6] == [
        "build minilm FP16", "build minilm INT8+FP16", "build minilm INT8+FP16 full",
        "build bert-base FP16", "build bert-base INT8+FP16", "latency bert-base 128 tokens",
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert sum(step.estimate_s for step in listed[:6]) < 180
    built: set[str] = set()
    for step in listed:
        built |= set(step.engines) if step.kind is Kind.BUILD else set()
        assert set(step.engines) <= built, f"{step.name} comes before its engines"


def test_every_engine_has_its_step(kit_folder: Path) -> None:
    kit = read_kit(kit_folder)
    built = [step.engines[0] for step in kit.steps if step.kind is Kind.BUILD]
    assert sorted(built) == sorted(engine.name for engine in kit.engines)
    assert len({engine.slug for engine in kit.engines}) == len(kit.engines)
    assert all(engine.sites and engine.weights for engine in kit.engines)


def test_a_kit_that_is_damaged_is_refused(kit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a prepared check"):
        read_kit(tmp_path)
    (tmp_path / KIT_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="is damaged: missing key"):
        read_kit(tmp_path)
    data = json.loads((kit_folder / KIT_FILE).read_text())
    (tmp_path / KIT_FILE).write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="lacks the file"):
        read_kit(tmp_path)
    (tmp_path / KIT_FILE).write_text(json.dumps(data | {"format": 99}))
    with pytest.raises(ConfigError, match="has format 99"):
        read_kit(tmp_path)
    with pytest.raises(ConfigError, match="is the prepared folder; give another"):
        run_kit(read_kit(kit_folder), kit_folder, kit_folder, 1.0, {}, lambda text: None, MACHINE)


def test_the_commands(
    kit_folder: Path, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], refused: Callable[..., str],
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "driver_cuda", lambda: None)
    assert "no NVIDIA driver here; nothing was run" in refused("gpu-check", "--prepared", str(kit_folder))
    monkeypatch.setattr(command, "MACHINE", MACHINE)
    monkeypatch.setattr(preparation, "prepare", lambda *arguments: read_kit(kit_folder))
    data = str(calibrated.parent / "data")
    assert run_command("gpu-check", ["--prepare", "kit", "--run", str(calibrated), "--data_dir", data]) == 0
    out = capsys.readouterr().out
    assert "gpu-check --prepared kit" in out
    results = tmp_path / "results"
    argv = ["--prepared", str(kit_folder), "--budget", "1.5", "--output_dir", str(results)]
    assert run_command("gpu-check", argv) == 1
    out = capsys.readouterr().out
    assert "not reached  latency bert-base 16 tokens" in out.replace("not reached latency", "not reached  latency")
    assert "not reached; " in out
    assert "pass one of them" in refused("gpu-check", "--prepare", "a", "--prepared", "b")
    assert "is not a prepared check" in refused("gpu-check", "--prepared", "nowhere")
    assert "budget" in refused("gpu-check", "--prepared", str(kit_folder), "--budget", "0")


def test_the_second_half_needs_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx', 'onnx_ir', 'jinja2', 'rich', 'matplotlib', 'modelopt', 'scipy',"
        " 'onnxruntime'): sys.modules[name] = None\n"
        "import q8trt.gpu_check.prepared.schedule, q8trt.gpu_check.prepared.worker, q8trt.cli.gpu_check\n"
        "import q8trt.gpu_check.prepared.page\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert Step("a", Kind.TORCH, (), 1.0).kind is Kind.TORCH
