"""Every command in the code blocks of the README and of docs/ is parsed by its command's own parser. Many also run for real.

The others need a GPU, a server, the hub, a model or data that the tests do not have, or minutes.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from scoring_fixtures import write_real_engine
from tiny_data import SHORT, write_sts_b

from q8trt import __version__
from q8trt.cli.main import COMMANDS, command_module, run_command
from q8trt.console.options import options_in
from q8trt.errors import Q8TRTError
from q8trt.quantization.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCRIPTS = {
    "finetune.py": "finetune",
    "calibrate.py": "calibrate",
    "build_engine.py": "build-engine",
    "benchmark.py": "benchmark",
}
#: Commands that run here for real: on an engine of a tiny model, without torch.
RUN_HERE = {"doctor", "info", "lint", "pack", "predict", "runs", "triton", "unpack"}
#: Commands that run for real in this order, on a run of a tiny model -> options that make their work small.
SMALL = {
    "finetune.py --task STS-B --data_dir glue": (
        "--model_name_or_path",
        "my-model",
        "--output_dir",
        "runs/NAME",
        *SHORT,
    ),
    "q8trt info runs/NAME": (),
    "q8trt info runs/NAME/int8": (),
    "build_engine.py --int8": (),
    "build_engine.py --int8 --no_baseline": (),
    "build_engine.py --int8 --stage ptq": (),
    "build_engine.py --int8 --buckets 32,64,128": ("--buckets", "16,32"),
    "benchmark.py": ("--iterations", "2", "--warmup", "0"),
    "benchmark.py --max_drop 0.5 --min_speedup 1.2": (
        "--max_drop",
        "100",
        "--min_speedup",
        "0.001",
        "--iterations",
        "2",
    ),
    "benchmark.py --no_accuracy --duration 10": ("--duration", "0", "--iterations", "2", "--name", "times"),
    "benchmark.py --compare A.json B.json --output_dir DIR": (),
    "q8trt parity": ("--samples", "4"),
    "q8trt parity runs/NAME/engine --samples 64": ("--samples", "4"),
    "calibrate.py": (),
    "calibrate.py --recipe gpu": (),
    "calibrate.py --recipe linear": (),
    "calibrate.py --sensitivity": ("--sensitivity_samples", "4", "--recipe", "linear"),
    "q8trt quantize my-model --texts texts.txt": (),
    "build_engine.py --checkpoint my-model --fp16": (),
}
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


class Command(NamedTuple):
    """A command of a page, in words, with comments and line continuations removed."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    @property
    def name(self) -> str | None:
        """The command of q8trt; None for make, scripts of the repository and other programs."""
        first, second = [*self.words, "", ""][:2]
        if first == "q8trt":
            return second
        return SCRIPTS.get(Path(second).name) if first in ("python", ".venv/bin/python") else None

    @property
    def text(self) -> str:
        """The command as pages write it: `finetune.py` without `python`."""
        return shlex.join(self.words).removeprefix("python ")

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.words[2:]

    @property
    def needs(self) -> str:
        """The resource that the command needs beside a CPU and local files: "gpu", "hub" or "server"; "" for none."""
        if "gpu-check" in self.words or Path(self.words[1]).name in ("torch_and_cupy.py", "pycuda_arrays.py"):
            return "gpu"
        if self.words[:2] == ("make", "triton") or "triton_local_server.py" in self.words[1]:
            return "server"
        is_local = {"--data_dir", "--train_file", "--demo", "--resume"} & {*self.words}
        return "hub" if self.name == "finetune" and not is_local else ""

    @property
    def runs_here(self) -> bool:
        """True for a command that `test_cheap_commands_run` runs."""
        is_cheap = self.name in RUN_HERE and not {"runs/NAME", "runs/NAME/int8", "questions.csv"} & {*self.words}
        return is_cheap and (self.name != "triton" or "python" in self.words)


def commands() -> Iterator[Command]:
    """Yield the commands of all pages, in order."""
    for page in PAGES:
        for number, text in lines_of_blocks(page.read_text(encoding="utf-8")):
            text = re.sub(r"(^|\s+)#\s.*$", "", text).strip().removeprefix("torchrun --nproc_per_node 4 ").strip()
            text = f"python {text}" if re.match(r"\w+\.py ", text) else text
            if re.match(r"(python|q8trt|make|\.venv/bin/python) \S", text):
                words = tuple(shlex.split(re.sub(r"\s{2,}\(.*\)$", "", text)))
                yield Command(str(page.relative_to(ROOT)), number, words)


def lines_of_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of code blocks, fenced or indented; a line that ends with a backslash is joined."""
    language: str | None = None
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            language = None if language is not None else line.strip().removeprefix("```")
            continue
        if language not in (None, "sh", "bash", "shell") or (language is None and not line.startswith("    ")):
            continue
        start, joined = (start, f"{joined} {line.strip()}") if joined else (number, line.strip())
        if joined.endswith("\\"):
            joined = joined.removesuffix("\\").strip()
            continue
        yield start, joined
        joined = ""


ALL = list(commands())
OF_Q8TRT = [each for each in ALL if each.name is not None]


def test_pages_have_commands_of_all_kinds() -> None:
    """So that a change of the pages' format does not leave the tests below without work."""
    assert len(OF_Q8TRT) >= 120
    assert {each.name for each in OF_Q8TRT} == set(COMMANDS)
    assert {each.needs for each in ALL} == {"", "gpu", "hub", "server"}
    assert [each for each in ALL if each.runs_here and each.needs] == []
    assert sum(each.runs_here or each.text in SMALL for each in ALL) >= 55


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
    monkeypatch.chdir(tmp_path)
    write_sts_b(tmp_path / "glue")
    shutil.copytree(tiny_checkpoint, "my-model")
    Path("texts.txt").write_text("red\nblue green\n" * 8, encoding="utf-8")
    for text, small in SMALL.items():
        each = next(each for each in OF_Q8TRT if each.text == text)
        if "--compare" in each.words:
            for report in ("A.json", "B.json"):
                shutil.copy("runs/NAME/benchmark.json", report)
        assert run_command(str(each.name), [*each.arguments, *small]) == 0, text


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


def test_the_picture_is_that_of_the_report() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "images" / "make.py"))
    drawn = script["picture"](json.loads(script["REPORT"].read_text(encoding="utf-8")))
    assert script["PICTURE"].read_text(encoding="utf-8") == drawn, "run python docs/images/make.py"


def test_the_citation_and_the_changelog_have_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    heading = f"## [{__version__}] - {citation['date-released']}\n"
    assert heading in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
