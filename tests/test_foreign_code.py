"""Code of a checkpoint or a data set is never run, and nobody is asked whether it may be."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_sts_b

from q8trt.cli.main import run_command

PACKAGE = Path(__file__).parents[1] / "q8trt"
#: Methods of transformers and datasets that may load code which a checkpoint or a data set brings.
LOADERS = ("from_pretrained", "from_config", "load_dataset")


def calls(tree: ast.AST) -> list[ast.Call]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in nodes if isinstance(node.func, ast.Attribute | ast.Name) and _name(node.func) in LOADERS]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else str(getattr(function, "id", ""))


def refuses_code(call: ast.Call) -> bool:
    values = [each.value for each in call.keywords if each.arg == "trust_remote_code"]
    return any(isinstance(value, ast.Constant) and value.value is False for value in values)


def test_every_loader_is_told_not_to_run_code() -> None:
    places = {
        f"{path.relative_to(PACKAGE)}:{call.lineno}": call
        for path in PACKAGE.rglob("*.py")
        for call in calls(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert len(places) >= 5
    assert [place for place, call in places.items() if not refuses_code(call)] == []


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, and code that would leave a trace."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w').close()\nclass Evil: pass\n")
    return folder


def add(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize("command", ["calibrate", "finetune"])
@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}}),
        ("config.json", {"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "evil"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
    ],
)
def test_a_checkpoint_with_code_is_refused_without_a_question(
    command: str, file: str, keys: dict[str, Any], checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    monkeypatch.chdir(tmp_path)
    add(checkpoint / file, **keys)
    write_sts_b(tmp_path / "data", 8, 4)
    options = ["--task", "STS-B", "--data_dir", "data", "--max_seq_length", "32", "--output_dir", "run"]
    assert run_command(command, [*options, "--model_name_or_path", "model"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs its own Python code (auto_map in " in line
    assert "which q8trt never runs" in line
    assert not Path("trace").exists()
    assert not Path("run").exists()


def test_a_data_set_is_loaded_without_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from q8trt.tasks.data import hub

    options: list[dict[str, Any]] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **given: options.append(given))
    for answers in (True, False):
        monkeypatch.setattr(hub, "hub_answers", lambda answers=answers: answers)
        hub._load("nyu-mll/glue", "rte", split="train")
    assert [each["trust_remote_code"] for each in options] == [False, False]
