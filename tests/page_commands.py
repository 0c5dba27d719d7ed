"""The commands in the code blocks of the README and of docs/, which of them tests run, and why others do not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tiny_data import SHORT

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
_SHORT = shlex.join(SHORT)
_TIMING = "--iterations 2 --warmup 0"
#: Commands that run for real in this order, on a run of a tiny model -> options that make their work small.
SMALL = {
    "finetune.py --task STS-B --data_dir glue": f"--model_name_or_path my-model --output_dir runs/NAME {_SHORT}",
    "q8trt info runs/NAME": "",
    "q8trt info runs/NAME/int8": "",
    "build_engine.py --int8": "",
    "build_engine.py --int8 --no_baseline": "",
    "build_engine.py --int8 --stage ptq": "",
    "build_engine.py --int8 --buckets 32,64,128": "--buckets 16,32",
    "build_engine.py --int8 --min_shapes 1x1 --opt_shapes 8x128 --max_shapes 64x128": "--opt_shapes 8x32 --max_shapes 8x64",
    "build_engine.py --int8 --fp16 --sm 7.5 --no_baseline": "",
    "build_engine.py --fp16 --sm 7.5": "",
    "build_engine.py --int8 --backend rtx --sm 8.9": "",
    "build_engine.py --int8 --fp16 --checkpoint runs/NAME": "",
    "benchmark.py": _TIMING,
    "benchmark.py --max_drop 0.5 --min_speedup 1.2": f"--max_drop 100 --min_speedup 0.001 {_TIMING}",
    "benchmark.py --max_drop 1.0 --min_speedup 1.5": f"--max_drop 100 --min_speedup 0.001 {_TIMING}",
    "benchmark.py --batch_sizes 1,8,32 --seq_lengths 32,128": f"--seq_lengths 16 --no_accuracy {_TIMING}",
    "benchmark.py --engine runs/NAME/engine --batch_sizes 1,8,32 --seq_lengths 32,128": f"--seq_lengths 16 {_TIMING}",
    "benchmark.py --no_cuda_graph --runtime_cache DIR": f"--no_accuracy {_TIMING}",
    "benchmark.py --engine runs/A/engine --engine runs/B/engine --shapes 1x128,8x128,32x128 --parity": (
        f"--shapes 1x16 {_TIMING}"
    ),
    "benchmark.py --no_accuracy --duration 10": "--duration 0 --iterations 2 --name times",
    "benchmark.py --compare A.json B.json --output_dir DIR": "",
    "benchmark.py --compare runs/A/benchmark.json runs/B/benchmark.json": "",
    "q8trt parity": "--samples 4",
    "q8trt parity runs/NAME/engine --samples 64": "--samples 4",
    "q8trt parity runs/NAME/engine --samples 64 --tolerance 0.02": "--samples 4 --tolerance 100",
    "calibrate.py --sensitivity": "--sensitivity_samples 4 --recipe linear",
    "calibrate.py --sensitivity --max_drop 1.0 --write_recipe mine.yaml": "--sensitivity_samples 4 --recipe linear",
    "calibrate.py --recipe mine.yaml": "",
    "calibrate.py": "",
    "calibrate.py --recipe gpu": "",
    "calibrate.py --recipe linear": "",
    "calibrate.py --recipe full --calibration_samples 1024": "--calibration_samples 16",
    "calibrate.py --model_name_or_path DIR --task STS-B": (
        "--model_name_or_path my-model --data_dir glue --max_seq_length 32"
    ),
    "finetune.py --task MRPC --data_dir glue/MRPC": f"--model_name_or_path my-model {_SHORT} --num_train_epochs 1",
    "finetune.py --task STS-B --model_name_or_path minilm --data_dir glue": f"{_SHORT} --num_train_epochs 1 --recipe linear",
    "finetune.py --task STS-B --data_dir glue --model_name_or_path minilm": f"{_SHORT} --num_train_epochs 1 --recipe linear",
    "q8trt quantize my-model --texts texts.txt": "",
    "q8trt quantize my-model --texts texts.parquet --validation_file dev.csv --distill 1": "--no_build_engines",
    "q8trt quantize minilm": "--no_build_engines --calibration_samples 16",
    "build_engine.py --checkpoint my-model --fp16": "",
}
#: Pages about the reader's own models and data: test_guides.py runs all their commands that have no reason below.
GUIDES = tuple(
    f"docs/guides/{name}.md"
    for name in (
        "cpu",
        "data",
        "embeddings",
        "models",
        "multi-label",
        "question-answering",
        "rerankers",
        "token-classification",
    )
)
#: Pattern of commands that do not run here -> the reason, or the file of tests that runs them. The first match counts.
REASONS = {
    r"q8trt gpu-check|make gpu-check|examples/(torch_and_cupy|pycuda_arrays)\.py": "gpu",
    r"build_engine\.py .*--backend tensorrt$": "gpu",
    r"q8trt triton (?!.*python)": "gpu",  # its configuration is that of a plan of TensorRT
    r"make triton|.*triton_local_server\.py": "container",
    r"finetune\.py (?!.*--(data_dir|train_file|demo|resume))": "hub",
    r"make |benchmarks/|finetune\.py --demo|.*all-mpnet-base-v2": "minutes",
    r"finetune\.py --resume": "tests/test_resume.py",
    r"q8trt quantize --resume": "tests/test_quantize.py",
    r"calibrate\.py --from_pytorch_quantization": "tests/test_pytorch_quantization.py",
    r"docs/reference/make\.py": "tests/test_options.py",
    r"examples/batch_csv\.py": "tests/test_examples.py",
}


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
    def reason(self) -> str:
        """The reason of `REASONS`; "" for none."""
        return next((reason for pattern, reason in REASONS.items() if re.match(pattern, self.text)), "")

    def in_runs(self, name: str) -> tuple[str, ...]:
        """Return the options that let the command make the run runs/`name`: runs of one second have one default name."""
        makes_run = self.name in ("finetune", "calibrate", "quantize") and "--sensitivity" not in self.words
        return ("--output_dir", f"runs/{name}") if makes_run and "--output_dir" not in self.words else ()

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
#: Texts of the commands that run for real; a text counts on each page that has it.
RUN = {
    each.text for each in OF_Q8TRT if each.runs_here or each.text in SMALL or (each.page in GUIDES and not each.reason)
}
