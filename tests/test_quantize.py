"""`q8trt quantize`: models of one's own, without labels, from a folder to a run."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_batch, make_tokenizer
from embedding_fixtures import TEXTS, write_embedding_folder

import q8trt
from q8trt.cli.main import main
from q8trt.cli.quantize import predict_command, run
from q8trt.engine.manifest_file import load_manifest
from q8trt.errors import ConfigError, DataError, InterruptedRunError, MissingPackageError
from q8trt.models import read_head
from q8trt.models.checkpoints import load_finetuned, load_quantized
from q8trt.runs.config import config_of_run
from q8trt.tasks.data import DataConfig
from q8trt.tasks.heads import Head, HeadKind

OPTIONS: dict[str, Any] = {"build_engines": False, "recipe": "linear", "calibration_samples": 16, "max_seq_length": 16}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(f"{text} {word}" for text in TEXTS for word in ("big", "old", "red", "here", "now")))
    return path


def test_an_embedding_model_without_labels(texts: Path, tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path / "model", prompts={"query": "find : "})
    lines: list[str] = []
    run = q8trt.quantize(folder, texts=texts, distill=1.0, runs_dir=tmp_path, on_message=lines.append, **OPTIONS).run
    assert run.path.name.startswith("embedding-model-")
    assert "embeddings of 32 features (mean, normalized), 16 tokens at most" in lines[0]
    assert any(re.fullmatch(r"\d+ texts: 16 to calibrate on, \d+ to compare answers on", line) for line in lines)
    stored = json.loads((run.path / "run.json").read_text())
    assert stored["config"]["data"]["head"]["embedding"]["prompts"] == {"query": "find : "}
    assert config_of_run(run).data.head == read_head(str(folder))
    scores = run.scores
    assert scores["fp32"]["dev"]["cosine_mean"] == pytest.approx(1)
    assert 0.9 < scores["ptq"]["dev"]["cosine_mean"] < 1
    assert set(scores["int8"]["dev"]) == {"cosine_mean", "cosine_p1", "cosine_worst", "neighbors_10"}
    assert read_head(str(run.path / "int8")) == read_head(str(folder))
    configs = [json.loads((run.path / stage / "config.json").read_text()) for stage in ("fp32", "int8")]
    assert configs[0]["use_cache"] == configs[1]["use_cache"]
    before, after = (load_quantized(run.path / stage)[0](**make_batch()).logits for stage in ("ptq", "int8"))
    assert not np.array_equal(before.detach(), after.detach())


def test_distillation_without_labels_starts_from_what_drifted_least(texts: Path, tmp_path: Path) -> None:
    """Ranges that clip, and dropout, would take the model away from the teacher that it is to stay close to."""
    folder = write_embedding_folder(tmp_path / "model")
    run = q8trt.quantize(
        folder, texts=texts, distill=0.5, output_dir=tmp_path / "run", **{**OPTIONS, "recipe": "gpu"}
    ).run
    assert config_of_run(run).recipe.qat_start is not None
    assert config_of_run(run).training.qat_dropout == 0
    before, after = (load_quantized(run.path / stage)[0].state_dict() for stage in ("ptq", "int8"))
    ranges = [name for name in before if name.endswith("_amax") and "weight" not in name]
    assert len(ranges) > 10
    for name in ranges:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_labels_of_an_embedding_model_are_similarities(texts: Path, tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path / "model")
    rows = [f"{a},{b},{number % 6}" for number, (a, b) in enumerate(itertools.pairwise(TEXTS))]
    (tmp_path / "dev.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]))
    run = q8trt.quantize(
        folder, texts=texts, validation_file=tmp_path / "dev.csv", runs_dir=tmp_path / "runs", **OPTIONS
    ).run
    assert list(run.scores["ptq"]["dev"]) == ["spearman", "pearson"]
    assert run.record.data
    assert run.record.data["splits"]["dev"]["rows"] == 9


def test_an_encoder_that_does_not_say_how_it_pools(texts: Path, tmp_path: Path) -> None:
    folder = write_embedding_folder(tmp_path / "model")
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    words = ["quantize", str(folder), "--head", "embedding", "--pooling", "cls", "mean", "--texts", str(texts), "--recipe",
             "linear", "--calibration_samples", "16", "--no_build_engines", "--runs_dir", str(tmp_path / "runs")]  # fmt: skip
    assert main(words) == 0
    [path] = (tmp_path / "runs").glob("embedding-model-*")
    head = config_of_run(q8trt.Run(path)).data.head
    assert head is not None
    assert head.embedding is not None
    assert (head.embedding.pooling, head.outputs, head.embedding.normalize) == (("cls", "mean"), 64, False)
    batch = make_batch()
    model: Any = load_finetuned(path / "fp32", config_of_run(q8trt.Run(path)).data.resolved_task)
    states = model.base_model(**batch).last_hidden_state.detach().numpy()
    mask = batch["attention_mask"].numpy()[..., None]
    expected = np.concatenate([states[:, 0], (states * mask).sum(1) / mask.sum(1)], axis=1)
    np.testing.assert_allclose(model(**batch).logits.detach(), expected, atol=1e-5)
    assert read_head(str(path / "ptq")).embedding == head.embedding


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="building without a GPU needs tensorrt_rtx"
)
@pytest.mark.usefixtures("quick_export")
def test_parity_and_sensitivity_of_an_embedding_model(texts: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "build_engines": True, "target": "cpu"}
    model = write_embedding_folder(tmp_path / "model")
    quantized = q8trt.quantize(model, texts=texts, runs_dir=tmp_path / "runs", **options)
    compared = q8trt.parity(*quantized.engines, max_eval_samples=8, batch_sizes=[4])
    assert all(each.agrees for each in compared)
    assert load_manifest(quantized.engines[-1]).task.text_columns == []  # plain text has none, so predict takes any
    assert {"cosine_mean", "neighbors_10"} <= compared[-1].stages[-1].metrics.keys()
    analysis = q8trt.sensitivity(quantized.run.path / "fp32", recipe="linear", calibration_samples=16)
    assert analysis.costs.setup.metric == "cosine_mean"
    assert all(each.is_file() for each in analysis.files)


def test_a_classifier_keeps_its_labels_and_their_order(tiny_checkpoint_of: Any, texts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint_of(num_labels=3), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    names = {"0": "Zebra", "1": "apple", "2": "Mango"}
    (folder / "config.json").write_text(
        json.dumps({**config, "id2label": names, "label2id": {v: int(k) for k, v in names.items()}})
    )
    run = q8trt.quantize(folder, texts=texts, distill=0.5, runs_dir=tmp_path / "runs", **OPTIONS).run
    data = config_of_run(run).data
    assert data.resolved_task.labels == ("Zebra", "apple", "Mango")
    assert run.path.name.startswith("sequence-classification-model-")
    assert 0 <= run.scores["int8"]["dev"]["agreement"] <= 1
    original, kept = (load_finetuned(path, data.resolved_task) for path in (folder, run.path / "fp32"))
    np.testing.assert_array_equal(original(**make_batch()).logits.detach(), kept(**make_batch()).logits.detach())
    assert json.loads((run.path / "ptq" / "config.json").read_text())["id2label"] == names


def test_texts_that_are_cut_are_counted(tiny_checkpoint_of: Any, texts: Path, tmp_path: Path) -> None:
    """A classifier's folder names no length of its texts, and the default may be shorter than they are."""
    model, lines = tiny_checkpoint_of(num_labels=3), {}
    for length in (12, 64):
        lines[length] = [""]
        options = {**OPTIONS, "max_seq_length": length, "runs_dir": tmp_path / str(length)}
        q8trt.quantize(model, texts=texts, on_message=lines[length].append, **options)
    tokens = [len(make_tokenizer()(line)["input_ids"]) for line in texts.read_text().splitlines()]
    full = sum(count >= 12 for count in tokens)
    assert 0 < full < len(tokens)
    remedy = "the model reads up to 64: --max_seq_length 64"
    assert f"texts: {full} of {len(tokens)} have 12 tokens or more and are cut there; {remedy}" in lines[12]
    assert "are cut" not in "".join(lines[64])


def test_a_regression_of_pairs(tiny_checkpoint_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a in TEXTS for b in TEXTS[:3]))
    run = q8trt.quantize(
        tiny_checkpoint_of(), texts=path, text_column_names=("a", "b"), runs_dir=tmp_path / "runs", **OPTIONS
    ).run
    task = config_of_run(run).data.resolved_task
    assert (task.head.kind, task.is_pair) == (HeadKind.REGRESSION, True)
    assert run.scores["ptq"]["dev"]["correlation"] > 0.9


def test_a_run_of_a_model_of_ones_own_is_found_again(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its texts are those of run.json, wherever the folder is."""
    folder = write_embedding_folder(tmp_path / "model")
    inside = Path(shutil.copy(texts, tmp_path / "t.txt"))
    monkeypatch.chdir(tmp_path)
    run = q8trt.quantize("model", texts=inside.name, **OPTIONS).run
    config = config_of_run(run)
    assert config.data.texts == str(inside)
    assert config.from_fp32 == str(folder)
    inside.write_text("other texts\nthan before\nhere")
    with pytest.raises(q8trt.Q8TRTError, match=r"the train rows .* have changed since the run"):
        config_of_run(run).data.load("train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere' is neither a folder here nor reachable on the hub"),
        (["MODEL", "--head", "regression"], "has no regression head (BertModel in config.json); leave --head out"),
        (["empty.txt"], "empty.txt is a file; expected the folder of a model"),
        (
            ["MODEL", "--texts", "words.conll"],
            "unknown extension '.conll'; expected one of .csv, .tsv, .jsonl, .json, .parquet, .txt",
        ),
        (["MODEL", "--head", "tagger"], "invalid choice: 'tagger'"),
        (["MODEL", "--pooling", "mean"], "defines its own pooling"),
        (["MODEL", "--texts", "nowhere.txt"], "nowhere.txt: no such file"),
        (["MODEL", "--texts", "empty.txt"], "empty.txt: no text"),
        (["MODEL", "--max_seq_length", "600"], "--max_seq_length 600, but the model has 64 positions; give 64 or less"),
        (["MODEL", "--distill", "-1"], "--distill -1.0, expected 0 or more"),
        (["plain"], "for an embedding model, use q8trt quantize with --head embedding --pooling mean"),
        (
            ["plain", "--head", "embedding"],
            "give --pooling with cls or max or mean or mean_sqrt_len_tokens or weightedmean",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_embedding_folder(tmp_path / "MODEL")
    shutil.copytree("MODEL", "plain")
    (tmp_path / "plain" / "modules.json").unlink()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "words.conll").write_text("a O\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["quantize", *words, "--no_build_engines"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_are_not_finite_leave_no_run(texts: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_embedding_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] = np.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"model: 16 of 16 rows of logits are not finite.*; check the weights$"):
        q8trt.quantize(folder, texts=texts, runs_dir=tmp_path / "runs", **OPTIONS)
    assert not list((tmp_path / "runs").glob("*"))


def test_shapes_that_cannot_be_built_are_refused_before_a_run_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_embedding_folder(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    assert main(["quantize", "model", "--max_shapes", "32x4096"]) == 2
    assert "4096" in capsys.readouterr().err
    for more in ([], ["--no_build_engines"]):
        assert main(["quantize", "model", "--max_seq_length", "1024", *more]) == 2
        out, err = capsys.readouterr()
        assert re.fullmatch(
            r"quantize: error: --max_seq_length 1024, but the model has (\d+) positions; give \1 or less\n", err
        )
        assert "1024 tokens" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_models_folder_becomes_a_run_to_build_from(tmp_path: Path) -> None:
    from q8trt.deployment.quantizing import run_of_folder
    from q8trt.quantization.precision import Precision

    folder, runs = write_embedding_folder(tmp_path / "model"), str(tmp_path / "runs")
    with pytest.raises(ConfigError, match="is a model in floating point; quantize it: "):
        run_of_folder(str(folder), None, runs, print, [])
    lines: list[str] = []
    path = run_of_folder(str(folder), Precision.FP16, runs, lines.append, ["build_engine.py"])
    assert path is not None
    assert "--texts" not in "".join(lines)  # build_engine.py has no such option
    assert list(q8trt.Run(Path(path)).scores) == ["fp32"]
    assert run_of_folder(path, Precision.FP16, runs, print, []) == path
    assert run_of_folder(f"{path}/fp32", Precision.FP16, runs, print, []) == f"{path}/fp32"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="building without a GPU needs tensorrt_rtx"
)
@pytest.mark.usefixtures("quick_export")
def test_ctrl_c_is_continued_to_the_engines_and_the_report(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interrupted command, the same command again and each message name `quantize --resume`, which builds as asked."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    folder, run = write_embedding_folder(tmp_path / "model"), tmp_path / "run"
    options = "--recipe linear --calibration_samples 16 --max_seq_length 16 --target cpu --no_baseline --buckets 8,16"
    words = ["quantize", str(folder), "--texts", str(texts), *options.split(), "--output_dir", str(run)]
    resume = f"quantize --resume {run}"
    with monkeypatch.context() as patched:
        patched.setattr("q8trt.training.finetuning.quantize", interrupted)
        assert main(words) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("quantize: stopped during calibration; continue with: ")
    assert line.endswith(resume)
    with monkeypatch.context() as patched:
        patched.setattr("q8trt.deployment.quantizing.build_engine", interrupted)
        assert main(["quantize", "--resume", "--runs_dir", str(tmp_path)]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("quantize: stopped before the engines and the report were complete; continue with: ")
    assert line.endswith(resume)
    assert main(words) == 2
    refused = capsys.readouterr().err.splitlines()[-1]
    assert f"{run} is a run already; give another --output_dir, or continue it: " in refused
    assert refused.endswith(resume)
    assert main(["quantize", "--resume", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:-1] == [
        f"run: {run}",
        f"engine: {run}/engine-ptq",
        f"report: {run}/benchmark.html, benchmark.md and benchmark.json",
    ]
    words = f" predict --engine {run}/engine-ptq --input {texts} --output embeddings.npy"
    assert (lines[-1].startswith("next: "), lines[-1].endswith(words)) == (True, True), lines[-1]
    predict = [
        "predict",
        "--engine",
        f"{run}/engine-ptq",
        "--input",
        str(texts),
        "--output",
        f"{tmp_path}/embeddings.npy",
    ]
    assert main(predict) == 0
    assert [each.name for each in run.glob("engine*")] == ["engine-ptq"]
    assert [profile.max[1] for profile in load_manifest(run / "engine-ptq").profiles] == [8, 16]
    assert (run / "benchmark.json").is_file()
    with monkeypatch.context() as patched:  # a sound engine is not built again
        patched.setattr("q8trt.deployment.quantizing.build_engine", interrupted)
        assert main(["quantize", "--resume", str(run)]) == 0
    assert main(words) == 2
    assert "continue it" not in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_copy_of_the_model(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished FP32 stage has the model that was read, even if the folder has another tokenizer now or is gone."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    folder, run = write_embedding_folder(tmp_path / "model"), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("q8trt.training.finetuning.quantize", interrupted)
        with pytest.raises(InterruptedRunError):
            q8trt.quantize(folder, texts=texts, output_dir=run, **OPTIONS)
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    q8trt.quantize(resume=whole)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog": ', '"DOG": '))
    q8trt.quantize(resume=Path(shutil.copytree(run, tmp_path / "changed")))
    shutil.rmtree(folder)
    q8trt.quantize(resume=run)
    for name in ("tokenizer.json", "model.safetensors"):
        expected = (whole / "ptq" / name).read_bytes()
        assert [(path / "ptq" / name).read_bytes() == expected for path in (run, tmp_path / "changed")] == [True, True]


def test_changed_texts_are_refused_before_engines_are_built(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("q8trt.deployment.quantizing.find_backend", lambda name: None)
    monkeypatch.setattr("q8trt.deployment.quantizing.build_engine", interrupted)
    inside, run = Path(shutil.copy(texts, tmp_path / "texts.txt")), tmp_path / "run"
    options = {**OPTIONS, "build_engines": True, "output_dir": run}
    with pytest.raises(InterruptedRunError, match="stopped before the engines"):
        q8trt.quantize(write_embedding_folder(tmp_path / "model"), texts=inside, **options)
    with pytest.raises(InterruptedRunError, match="stopped before the engines"):
        q8trt.quantize(resume=run)
    inside.write_text(inside.read_text().replace("dog", "cat"))
    with pytest.raises(q8trt.Q8TRTError, match=r"have changed since the run.*restore them"):
        q8trt.quantize(resume=run)


def test_paths_are_checked_before_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config: dict[str, Any] = {"format": 1, "config": {}, "stages": {"ptq": {"checkpoint": "ptq"}}}
    (tmp_path / "run.json").write_text(json.dumps(config))
    lines = {
        (str(tmp_path),): f"{tmp_path} is a run of q8trt, not a model in floating point; build its engine: ",
        (
            f"{tmp_path}/ptq",
        ): f"{tmp_path}/ptq is a quantized checkpoint of a run, not a model in floating point; build",
        ("minilm", "--texts", f"{tmp_path}/none.txt"): f"{tmp_path}/none.txt: no such file",
    }
    for words, line in lines.items():
        assert main(["quantize", *words]) == 2
        out, err = capsys.readouterr()
        assert line in err
        assert out == ""


def test_torch_is_the_first_package_that_is_missed(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("q8trt.hardware.packages.find_spec", lambda module: None)
    monkeypatch.setattr("q8trt.hardware.packages.installed_version", lambda package: None)
    assert main(["quantize", "model", "--texts", str(texts), "--runs_dir", str(tmp_path / "runs")]) == 2
    assert re.match(r"quantize: error: torch is not installed: pip install .*\btorch\b", capsys.readouterr().err)


def test_resume_takes_runs_of_quantize_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize"]) == 2
    assert "MODEL is missing; give a folder, a hub name or minilm, or --resume RUN" in capsys.readouterr().err
    assert main(["quantize", "--resume", "--runs_dir", str(tmp_path)]) == 2
    assert "no unfinished run of q8trt quantize under" in capsys.readouterr().err
    assert main(["quantize", "--resume", "run", "--no_baseline"]) == 2
    assert "--resume continues a run with its own options; drop --no_baseline" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="leave all other options out"):
        q8trt.quantize(resume="run", distill=1.0)


def test_the_command_passes_its_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    class Passed(Exception):
        pass

    def quantize(*_: Any, shapes: Any, **__: Any) -> None:
        raise Passed(shapes.buckets)

    monkeypatch.setattr("q8trt.api.quantize", quantize)
    with pytest.raises(Passed) as passed:
        run(["model", "--buckets", "16,32"])
    assert passed.value.args == ((16, 32),)


def test_the_next_command_scores_a_file_of_the_models_kind() -> None:
    one, pairs = Head(HeadKind.SEQUENCE_CLASSIFICATION, ("no", "yes")), Head(HeadKind.RERANKER)
    inputs = {"x.csv": "x.csv", "x.parquet": "texts.txt", None: "texts.txt"}
    for texts, expected in inputs.items():
        line = predict_command(Path("run/engine-ptq"), DataConfig("custom", head=one, texts=texts))
        assert line.endswith(f"predict --engine run/engine-ptq --input {expected} --output answers.csv")
    assert "--input pairs.csv " in predict_command(Path("run/engine-ptq"), DataConfig("custom", head=pairs))


def _no_builder(*_: object) -> None:
    raise MissingPackageError("TensorRT is not installed", "pip install tensorrt")


@pytest.mark.usefixtures("quick_export")
def test_an_engine_for_a_cpu_needs_no_tensorrt(
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "q8trt")
    monkeypatch.setattr("q8trt.deployment.quantizing.find_backend", _no_builder)
    monkeypatch.setattr("q8trt.deployment.engine_folder.started_backend", _no_builder)
    folder = write_embedding_folder(tmp_path / "model")
    options = {**OPTIONS, "build_engines": True, "target": "cpu", "texts": texts}
    quantized = q8trt.quantize(folder, output_dir=tmp_path / "run", **options)
    assert [path.name for path in quantized.engines] == ["engine-fp32", "engine-ptq"]
    assert quantized.report is not None
    assert "no plan, which a CPU does not need" in caplog.text
    assert "rebuild it" not in caplog.text  # nothing is missing
    for path in quantized.engines:
        manifest = load_manifest(path)  # reads every file
        assert (manifest.backend, manifest.record.engine) == (None, None)
        assert (path / "model.onnx").exists()
        assert not (path / "model.plan").exists()
    assert [row.place for row in quantized.report.rows] == ["ONNX Runtime, CPU"] * 2
    with q8trt.Engine.load(quantized.engines[1]) as engine:
        assert engine.backend == "onnxruntime"
        assert engine.embed(["a plane is here"]).shape == (1, 32)
    capsys.readouterr()
    assert main(["build-engine", "--checkpoint", str(tmp_path / "run"), "--stage", "ptq"]) == 0
    assert "no plan: ONNX Runtime runs model.onnx on the CPU" in capsys.readouterr().out


def test_an_engine_without_a_plan_is_for_a_cpu_alone(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("q8trt.deployment.quantizing.find_backend", _no_builder)
    folder, options = write_embedding_folder(tmp_path / "model"), {**OPTIONS, "build_engines": True, "texts": texts}
    for more in ({}, {"target": "cpu", "backend": "tensorrt"}, {"target": "cpu", "sm": ("8.9",)}):
        with pytest.raises(MissingPackageError, match="TensorRT is not installed"):
            q8trt.quantize(folder, output_dir=tmp_path / "run", **options, **more)
    assert not (tmp_path / "run").exists()
