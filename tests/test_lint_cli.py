"""`q8trt lint` as a user meets it: what it prints, what it returns, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_fixtures import Refused, refused  # noqa: F401 - a fixture
from lint_graphs import SITES, make_encoder
from rich.console import Console
from waiting import PATIENCE

from q8trt.cli.main import main
from q8trt.lint import Place, lint
from q8trt.quantization.precision import Precision
from q8trt.reporting.lint_report import names_of, print_report

PLAIN = tuple(site for site in SITES if site not in ("v", "softmax"))


def printed(path: Path, width: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_report(lint(path), Console(width=width))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_layers_that_look_alike_share_a_line(width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_encoder(tmp_path / "model.onnx", layers=3)
    lines = printed(path, width, capsys)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= width
    rows = {line[: len("layer 0-2 feed-forward")].strip(): line.split() for line in lines}
    assert rows["layer 0-2 attention"][3:] == ["4/4", "2/2", "INT8", "FP16", "fusable", "in", "INT8"]
    assert rows["layer 0-2 feed-forward"][3:] == ["2/2", "INT8", "FP16"]
    assert rows["embeddings"] == ["embeddings", "FP16", "1", "INT8", "table"]
    end = " ".join(lines[-3:])
    assert end.endswith(
        "INT8: 18 of 19 GEMMs, 6 of 6 BMMs, 6 of 6 residual Adds, 1 of 1 tables; 3 of 3 attentions fusable; 0 errors, "
        "0 warnings, 2 notes."
    )


def test_findings_are_grouped_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(printed(make_encoder(tmp_path / "model.onnx", sites=PLAIN, zero_point=1), 200, capsys))
    first, second = text.index("error   zero-point x"), text.index("warning bmm-not-int8 x4")
    assert first < second < text.index("info    dynamic-shapes")
    block = text[second:].split("\n\n")[0].splitlines()
    assert block[1].strip() == "first BMM: Q in asymmetric INT8 and K in asymmetric INT8 (x2)"
    assert block[3].strip().startswith("in layer 0-1 attention; first: MatMul_")
    assert block[4].strip().startswith("why: a BMM of attention without INT8 on both sides")
    assert block[5].strip().startswith("fix: put Q/DQ on Q and K")
    assert "TensorRT will refuse this file or misread it." in text


def test_every_fp32_leftover_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_encoder(tmp_path / "model.onnx", fp32_softmax=True)
    text = "\n".join(printed(path, 200, capsys)).split("fp32-leftover x2")[1]
    names = lint(path).forecast.fp32_compute_ops
    assert len(names) == 2
    assert f"in layer 0-1 attention; {names[0]}, {names[1]}\n" in text


@pytest.mark.parametrize(
    ("places", "text"),
    [
        ([("attention", 0)], "layer 0 attention"),
        ([("attention", 0), ("attention", 2), ("attention", 3)], "layer 0, 2-3 attention"),
        ([("head", None), ("embeddings", None), ("attention", 1)], "embeddings, layer 1 attention, head"),
        ([("attention", 0), ("feed-forward", 0)], "layer 0 attention and feed-forward"),
    ],
)
def test_names_of_blocks(places: list[tuple[str, int | None]], text: str) -> None:
    assert names_of([Place(*place) for place in places]) == text


def test_exit_code_follows_the_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, poor = make_encoder(tmp_path / "good.onnx"), make_encoder(tmp_path / "poor.onnx", sites=PLAIN)
    bad = make_encoder(tmp_path / "bad.onnx", zero_point=1)
    codes = {
        (path.stem, level): main(["lint", str(path), "--level", level])
        for path in (good, poor, bad)
        for level in ("error", "warning", "info")
    }
    capsys.readouterr()
    assert codes == {
        ("good", "error"): 0,
        ("good", "warning"): 0,
        ("good", "info"): 1,
        ("poor", "error"): 0,
        ("poor", "warning"): 1,
        ("poor", "info"): 1,
        ("bad", "error"): 1,
        ("bad", "warning"): 1,
        ("bad", "info"): 1,
    }
    assert main(["lint", str(poor)]) == 1  # warning is the default


def test_json_and_the_largest_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_encoder(tmp_path / "model.onnx")
    assert main(["lint", str(path), "--max_shapes", "4x600", "--json", "--output", str(tmp_path / "out.json")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out.json").read_text())
    assert report["max_shapes"] == [4, 600]
    assert report["forecast"]["fusable_attentions"] == 0
    assert {finding["rule"] for finding in report["findings"]} == {"attention-sequence", "gemm-not-int8"}


def test_an_engine_folder_brings_its_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from q8trt.engine.manifest import Manifest, ModelInfo, TaskInfo
    from q8trt.engine.manifest_file import write_manifest
    from q8trt.engine.shapes import ShapeProfile

    make_encoder(tmp_path / "model.onnx")
    task = TaskInfo("STS-B", [], True, True, "pearson")
    model = ModelInfo("tiny", "bert", 1, 1024, 0, 600)
    shapes = ShapeProfile((1, 1), (4, 128), (8, 600))
    manifest = Manifest(task, model, Precision.INT8_FP16, None, ["input_ids", "attention_mask"], 20, profiles=[shapes])
    write_manifest(tmp_path, manifest)
    assert main(["lint", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "judged up to 8x600" in out
    assert "attention-sequence" in out
    assert main(["lint", str(tmp_path), "--max_shapes", "8x128"]) == 0


def test_bad_input_is_one_line(refused: Refused, tmp_path: Path) -> None:  # noqa: F811
    assert "missing.onnx does not exist; expected an .onnx file or an engine folder" in refused("lint", "missing.onnx")
    good = make_encoder(tmp_path / "good.onnx").read_bytes()
    for name, data in (("text.onnx", b"not a model at all" * 9), ("cut.onnx", good[: len(good) // 2])):
        Path(name).write_bytes(data)
        assert f"{name} is not an ONNX file, or is truncated; export it again" in refused("lint", name)
    Path("empty.onnx").write_bytes(b"")
    assert "empty.onnx has no ONNX graph" in refused("lint", "empty.onnx")
    Path("folder").mkdir()
    assert "folder has no manifest.json" in refused("lint", "folder")
    assert "cannot read the shape '128'" in refused("lint", "good.onnx", "--max_shapes", "128")


def test_a_cycle_is_refused(refused: Refused, tmp_path: Path) -> None:  # noqa: F811
    import onnx

    model = onnx.load(make_encoder(tmp_path / "model.onnx"))
    node = next(node for node in model.graph.node if node.op_type == "Gelu")
    node.input[0] = node.output[0]
    onnx.save(model, "cycle.onnx")
    assert "cycle.onnx is malformed: its graph has a cycle at Gelu_" in refused("lint", "cycle.onnx")


def test_linting_needs_neither_torch_nor_tensorrt(tmp_path: Path) -> None:
    path = make_encoder(tmp_path / "model.onnx")
    code = (
        "import sys\n"
        "from q8trt.cli.main import main\n"
        "import q8trt.lint\n"
        "assert 'onnx' not in sys.modules\n"
        f"assert main(['lint', {str(path)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'modelopt', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
