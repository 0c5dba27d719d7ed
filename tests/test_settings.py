"""Settings for a model and a task: where they apply, what wins over them, and files that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_data import SHORT, write_sts_b

import q8trt
from q8trt.cli.finetune import DEMO
from q8trt.cli.main import run_command
from q8trt.console.keywords import take
from q8trt.errors import ConfigError
from q8trt.runs import settings
from q8trt.runs.config import FinetuneConfig, config_of_run
from q8trt.runs.run import Run
from q8trt.runs.settings import Settings, TaskSettings, builtin_settings, parse_settings, with_settings

MODEL = "{model_type: bert, num_hidden_layers: 6, hidden_size: 384, num_attention_heads: 12}"
LINE = "settings for minilm on STS-B: learning_rate 0.0001, dropout 0 (q8trt/settings/minilm.yaml)"


def config(*given: str, **options: Any) -> tuple[FinetuneConfig, str]:
    """The configuration of a run of MiniLM with its settings, and the line."""
    values = {"task": "STS-B", "sample": True, "model_name_or_path": "minilm", **options}
    chosen = take(FinetuneConfig, None, dict(values))
    assert chosen is not None
    return with_settings(chosen, {*values, *given})


def save_config(folder: Path, **changes: Any) -> str:
    """A folder that holds config.json of MiniLM's sizes, with changes."""
    sizes = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **sizes, **changes}))
    return str(folder)


def test_every_file_can_be_read_and_has_the_name_of_its_settings() -> None:
    assert [(each.name, each.path) for each in builtin_settings()] == [("minilm", "q8trt/settings/minilm.yaml")]
    assert [
        each.path for each in builtin_settings() if not Path(__file__).parents[1].joinpath(each.path).is_file()
    ] == []


def test_settings_are_for_a_model_and_a_task() -> None:
    chosen, line = config()
    assert (chosen.training.learning_rate, chosen.training.dropout, chosen.settings) == (1e-4, 0.0, "minilm")
    assert line == LINE


def test_an_option_that_is_given_wins() -> None:
    chosen, line = config(learning_rate=5e-5)
    assert (chosen.training.learning_rate, chosen.training.dropout) == (5e-5, 0.0)
    assert line == LINE.replace("learning_rate 0.0001, ", "")
    chosen, line = config(learning_rate=5e-5, dropout=0.1)
    assert (chosen.training.learning_rate, chosen.training.dropout, chosen.settings, line) == (5e-5, 0.1, None, "")


def test_a_model_is_known_by_its_sizes(tmp_path: Path) -> None:
    assert config(model_name_or_path=save_config(tmp_path / "copy"))[1] == LINE
    for name, change in {"layers": {"num_hidden_layers": 12}, "kind": {"model_type": "electra"}}.items():
        assert config(model_name_or_path=save_config(tmp_path / name, **change))[1] == ""
    assert config(model_name_or_path=str(tmp_path / "nothing"))[1] == ""


def test_options_of_stages_that_are_left_out_do_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    [minilm] = builtin_settings()
    both = TaskSettings({"learning_rate": 1e-3, "qat_learning_rate": 1e-5}, "")
    changed = Settings("minilm", minilm.model, options={"weight_decay": 0.0}, tasks={"STS-B": both})
    monkeypatch.setattr(settings, "builtin_settings", lambda: iter([changed]))
    assert "weight_decay 0, learning_rate 0.001, qat_learning_rate 1e-05 (" in config()[1]
    assert "weight_decay 0, qat_learning_rate 1e-05 (" in config(from_fp32="minilm")[1]
    for fewer in ({"precision": "fp32"}, {"qat": False}):
        assert "weight_decay 0, learning_rate 0.001 (" in config(**fewer)[1]
    assert "on MRPC: weight_decay 0 (" in config(task="MRPC", sample=False)[1]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "expected the keys name, model, options and tasks"),
        (f"name: x\nmodel: {MODEL}\noption: {{}}", "unknown key: option"),
        (f"model: {MODEL}", "missing key: name"),
        ("name: x\nmodel: {model_type: bert, layers: 6}", "model: unknown 'layers'"),
        ("name: x\nmodel: {model_type: bert}", "model: key 'num_hidden_layers' is missing"),
        (f"name: x\nmodel: {MODEL}\ntasks: {{STSB: {{score: x, options: {{}}}}}}", "unknown 'STSB' (did you mean 'STS-B'?"),
        (f"name: x\nmodel: {MODEL}\ntasks: {{STS-B: {{options: {{}}}}}}", "missing key in tasks[...]: score"),
        (f"name: x\nmodel: {MODEL}\noptions: {{learning_rat: 1.0}}", "'learning_rat' (did you mean 'learning_rate'?)"),
        (f"name: x\nmodel: {MODEL}\noptions: {{learning_rate: 1e-4}}", "learning_rate='1e-4', expected float"),
        (f"name: x\nmodel: {MODEL}\noptions: {{dropout: 1}}", "--dropout 1, expected from 0 to below 1"),
        ("name: {", "not YAML"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line(document: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_settings(document.encode(), "settings x.yaml")
    assert str(error.value).startswith("settings x.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def tiny_settings(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings for the tiny model, in force; returns the options of a run of one step."""
    sizes = json.loads((tiny_checkpoint / "config.json").read_text())
    [minilm] = builtin_settings()
    tiny = Settings("tiny", {key: sizes[key] for key in minilm.model}, tasks={"STS-B": minilm.tasks["STS-B"]})
    monkeypatch.setattr(settings, "builtin_settings", lambda: iter([tiny]))
    monkeypatch.chdir(tmp_path)
    write_sts_b(tmp_path / "data")
    return {
        "task": "STS-B", "data_dir": "data", "model_name_or_path": str(tiny_checkpoint), "max_seq_length": 32,
        "use_cpu": True, "precision": "fp32", "do_eval": False, "max_steps": 1,
    }  # fmt: skip


def dropout_of(run: Path) -> float:
    return float(json.loads((run / "fp32" / "config.json").read_text())["hidden_dropout_prob"])


def test_a_command_uses_settings_says_so_and_records_them(
    tiny_settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--task", "STS-B", "--data_dir", "data", "--model_name_or_path", tiny_settings["model_name_or_path"], *SHORT,
        "--precision", "fp32", "--no_do_eval", "--max_steps", "1", "--output_dir", "run",
    ]  # fmt: skip
    assert run_command("finetune", argv) == 0
    out = capsys.readouterr().out
    assert "settings for tiny on STS-B: learning_rate 0.0001, dropout 0 (q8trt/settings/tiny.yaml)\n" in out
    stored = json.loads(Path("run/run.json").read_text())["config"]
    assert (stored["settings"], stored["training"]["learning_rate"], stored["training"]["dropout"]) == ("tiny", 1e-4, 0)
    assert dropout_of(Path("run")) == 0
    assert run_command("calibrate", ["--runs_dir", "."]) == 0
    [calibrated] = Path().glob("ptq-*")
    assert config_of_run(Run(calibrated)).settings is None


def test_the_api_uses_settings_for_keywords_and_obeys_a_configuration(tiny_settings: dict[str, Any]) -> None:
    messages: list[str] = []
    run = q8trt.finetune(**tiny_settings, learning_rate=2e-4, output_dir="a", on_message=messages.append)
    assert config_of_run(run).training.learning_rate == 2e-4
    assert config_of_run(run).training.dropout == dropout_of(run.path) == 0
    assert "settings for tiny on STS-B: dropout 0 (q8trt/settings/tiny.yaml)" in messages
    ready = take(FinetuneConfig, None, dict(tiny_settings))
    messages.clear()
    obeyed = q8trt.finetune(ready, output_dir="b", on_message=messages.append)
    assert (config_of_run(obeyed).settings, config_of_run(obeyed).training.dropout) == (None, None)
    assert [line for line in messages if line.startswith("settings")] == []


def test_the_demo_has_settings() -> None:
    assert not {"learning_rate", "dropout"} & DEMO.keys()
    assert config(**DEMO)[1] == LINE
