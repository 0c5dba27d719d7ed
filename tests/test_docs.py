"""Every command in the code blocks of the README and of docs/ runs or has a reason not to, and its options are parsed."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from embedding_fixtures import write_embedding_folder
from page_commands import ALL, OF_Q8TRT, PAGES, REASONS, ROOT, RUN, SMALL
from scoring_fixtures import write_real_engine
from tiny_data import write_mrpc, write_sts_b

from q8trt import __version__
from q8trt.cli.main import COMMANDS, command_module, run_command
from q8trt.console.options import options_in
from q8trt.errors import Q8TRTError
from q8trt.quantization.recipe import Recipe

_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_pages_have_commands_of_all_kinds() -> None:
    """So that a change of the pages' format does not leave the tests below without work."""
    assert len(OF_Q8TRT) >= 130
    assert {each.name for each in OF_Q8TRT} == set(COMMANDS)
    assert sum(each.text in RUN for each in ALL) >= 100


def test_every_command_runs_or_has_a_reason() -> None:
    """A new command of a page belongs into `SMALL` or a page of `GUIDES`, or has a reason in `REASONS`."""
    assert [str(each) for each in ALL if each.text not in RUN and not each.reason] == []
    assert [str(each) for each in ALL if each.text in RUN and each.reason] == []
    texts = {each.text for each in ALL}
    assert set(SMALL) <= texts
    assert [pattern for pattern in REASONS if not any(re.match(pattern, text) for text in texts)] == []
    reasons = Counter(each.reason for each in ALL if each.reason)
    files = reasons.keys() - {"gpu", "container", "hub", "minutes"}
    assert [name for name in files if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("words", sorted({each.words for each in ALL if "benchmarks/" in each.text}), ids=shlex.join)
def test_options_of_benchmark_scripts_parse(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The script itself runs, up to the end of its parser."""

    class ParsedError(Exception):
        pass

    def parse(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        parse_all(parser, *arguments)
        raise ParsedError

    parse_all = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [*words[1:]])
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")


@pytest.mark.parametrize("page", sorted({each.page for each in OF_Q8TRT}))
def test_options_exist_and_values_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "q8trt" / "recipes" / "linear.yaml", "mine.yaml")  # the reader's own recipe
    (tmp_path / "glue").mkdir()
    wrong = []
    for each in OF_Q8TRT:
        if each.page == page:
            try:
                parser = command_module(str(each.name)).PARSER
                is_whole = not {"--demo", "--resume"} & {*each.arguments} or each.name != "finetune"
                (parser.read if is_whole else parser.typed_options)(each.arguments)
            except (Q8TRTError, KeyError) as error:
                wrong.append(f"{each}: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    "page", [each for each in PAGES if "```yaml" in each.read_text(encoding="utf-8")], ids=lambda each: each.name
)
def test_recipes_of_the_pages_are_recipes(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        assert Recipe.from_dict(yaml.safe_load(block)).name == "mine"


def test_targets_of_make_and_scripts_exist() -> None:
    for each in ALL:
        if each.words[0] == "make":
            assert each.words[1] in _TARGETS, str(each)
        elif each.name is None:
            assert (ROOT / each.words[1]).is_file(), str(each)


def test_options_in_running_text_exist() -> None:
    """Flags in code spans of the guides, such as `--max_drop`, are options of some command."""
    flags = {
        flag for name in COMMANDS for option in options_in(command_module(name).PARSER.options) for flag in option.flags
    }
    foreign = {"--help", "--version", "--shm-size", "--model-repository", "--nproc_per_node", "--overwrite"}
    for page in PAGES:
        if page.name in ("from-mindspore-q8bert.md",):
            continue  # its first column has the options of another program
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for span in re.findall(r"`(--\w[^`]*)`", text):
            for flag in re.findall(r"--[a-z]\w*(?:-\w+)*", span):
                assert flag in flags | foreign, f"{page.name}: {span}"


@pytest.mark.parametrize("words", sorted({each.words for each in OF_Q8TRT if each.runs_here}), ids=shlex.join)
def test_cheap_commands_run(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = write_real_engine(tmp_path / "runs" / "NAME" / "engine")
    write_real_engine(engine.with_name("engine-ptq"), ("no", "yes"), is_pair=False)
    (tmp_path / "texts.txt").write_text("red\n", encoding="utf-8")
    shutil.copy(engine / "model.onnx", "model.onnx")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2\nred,blue\n", encoding="utf-8")
    _, name, *arguments = ("runs/NAME/engine" if word == "ENGINE" else word for word in words)
    if name == "unpack":
        assert run_command("pack", ["runs/NAME/engine", "--output", arguments[0]]) == 0
    assert run_command(name, arguments) in ((0, 1) if name in ("doctor", "lint") else (0,))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_export", "rtx")
def test_commands_run_on_a_tiny_run(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    write_sts_b(tmp_path / "glue")
    write_mrpc(tmp_path / "glue" / "MRPC")
    shutil.copytree(tiny_checkpoint, "my-model")
    write_embedding_folder(tmp_path / "minilm")
    table = pyarrow.table({"sentence": ["red", "blue green"] * 8})
    parquet.write_table(table, "texts.parquet")
    Path("dev.csv").write_text("sentence,label\nred,0.5\nblue green,1\n", encoding="utf-8")
    Path("texts.txt").write_text("red\nblue green\n" * 8, encoding="utf-8")
    for number, (text, small) in enumerate(SMALL.items()):
        each = next(each for each in OF_Q8TRT if each.text == text)
        if "--compare" in each.words:
            for report in ("A.json", "B.json"):
                shutil.copy("runs/NAME/benchmark.json", report)
        if "runs/A/engine" in each.words:
            for folder in ("runs/A", "runs/B"):
                shutil.copytree("runs/NAME", folder)
        assert run_command(str(each.name), [*each.arguments, *each.in_runs(str(number)), *small.split()]) == 0, text


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"])
def test_links_of_pages_outside_the_site_exist(name: str) -> None:
    """MkDocs checks those inside."""
    page = ROOT / name
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [each for each in targets if not (page.parent / each).exists()] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_measured_figures_are_those_of_the_report(page: str) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "images" / "make.py"))
    report = json.loads(script["REPORT"].read_text(encoding="utf-8"))
    names = {"FP32": "FP32", "INT8, calibration alone": "PTQ INT8+FP16", "INT8, QAT": "QAT INT8+FP16"}
    text = (ROOT / page).read_text(encoding="utf-8")
    for label, name in names.items():
        row = next(row for row in report["rows"] if row["name"] == name)
        one, sixteen = (each["median_ms"] for each in row["latencies"])
        figures = f"{100 * row['metrics']['pearson']:.2f} | {row['onnx_mib']:.1f} | {one:.2f} | {sixteen:.1f}"
        assert f"| {label} | {figures} |" in text


def test_the_pictures_are_those_of_the_report() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "images" / "make.py"))
    report = json.loads(script["REPORT"].read_text(encoding="utf-8"))
    for path, columns in script["PICTURES"].items():
        is_current = path.read_text(encoding="utf-8") == script["picture"](report, columns)
        assert is_current, f"{path} is out of date: run python docs/images/make.py"


def test_the_citation_and_the_changelog_have_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    heading = f"## [{__version__}] - {citation['date-released']}\n"
    assert heading in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
