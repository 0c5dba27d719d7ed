"""Engine folders whose manifest, tokenizer or graph was edited, damaged or exchanged, opened by `q8trt.Engine`.

Each opened engine answers the same texts: other answers than those of the sound folder are wrong. Some folders are signed, so
that hashes and digest fit what was changed: only contradictions can tell then, and any answer is right that is no crash.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.mutations import flipped, json_mutations, spliced, truncated

TESTS = Path(__file__).resolve().parents[2] / "tests"
PAIRS = [("a cat runs", "a dog"), ("plane", "a plane takes a cat"), ("a " * 50, "cat"), ("!" * 500, "a b c")]
FILES = ("manifest.json", "model.onnx", "tokenizer.json", "tokenizer_config.json")
#: Facts of the manifest that other facts or files contradict.
FACTS: tuple[tuple[str, str, Any], ...] = (
    ("task", "labels", ["a"]), ("task", "labels", ["a", "a"]), ("task", "is_regression", False),
    ("task", "text_columns", ["a", "b", "c"]), ("task", "activation", "tanh"), ("model", "num_labels", 3),
    ("model", "num_labels", 2**40), ("model", "max_seq_length", 3 * 10**8), ("model", "max_seq_length", 65),
    ("model", "max_position_embeddings", 8), ("model", "max_position_embeddings", 2**62), ("model", "pad_token_id", 99),
    ("model", "pad_token_id", -1), ("model", "pad_token_id", 2**40),
)  # fmt: skip


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield some 3,900 folders."""
    sys.path.insert(0, str(TESTS))
    from scoring_fixtures import LABELS, write_real_engine

    pairs = write_real_engine(base / "pairs")
    labels = write_real_engine(base / "labels", LABELS)
    expected = {engine: _answers_in_child(engine, base) for engine in (pairs, labels)}
    yield _case("sound: pairs", pairs, lambda folder: None, expected[pairs], expect="ok")
    yield _case("sound: labels", labels, lambda folder: None, expected[labels], expect="ok")
    for engine in (pairs, labels):
        document = json.loads((engine / "manifest.json").read_text())
        for name, data in json_mutations(document, random, 1450):
            yield _case(f"manifest {name}", engine, partial(_write, "manifest.json", data), expected[engine])
        for name, data in json_mutations(document, random, 150):
            yield _case(f"signed manifest {name}", engine, partial(_write_signed, data), None)
    for section, key, value in FACTS:
        yield _case(
            f"fact: {section}.{key} = {value}", pairs, partial(_fact, section, key, value), None, expect="refused"
        )
    for file in FILES[2:]:
        document = json.loads((pairs / file).read_text())
        for name, data in json_mutations(document, random, 200):
            yield _case(f"{file} {name}", pairs, partial(_replace, file, data), None)
    graph = (pairs / "model.onnx").read_bytes()
    for mutate in (flipped, truncated, spliced):
        for number in range(40):
            yield _case(
                f"graph {mutate.__name__}: {number}",
                pairs,
                partial(_replace, "model.onnx", mutate(graph, random)),
                None,
            )
    for name, change in _hostile():
        yield _case(f"hostile: {name}", pairs, change, expected[pairs])
    for regex in ("(a+)+$", "(", "(?<=a+)b", "[", "(a|a)*b", "a{1,1000000}", "(?R)"):
        yield _case(f"hostile: regex {regex}", pairs, partial(_with_regex, regex), None)


def _hostile() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yield folders that hold something else than files of q8trt."""
    for file in FILES:
        yield f"{file} missing", lambda folder, file=file: (folder / file).unlink()
        yield f"{file} empty", partial(_write, file, b"")
        yield f"{file} of NUL", partial(_write, file, bytes(10_000))
        yield f"{file} random", partial(_write, file, Random(file).randbytes(10_000))
        yield f"{file} a folder", partial(_instead, file, lambda path: path.mkdir())
        yield f"{file} a pipe", partial(_instead, file, os.mkfifo)
        yield f"{file} a link to itself", partial(_instead, file, lambda path: path.symlink_to(path.name))
        yield f"{file} a link to nothing", partial(_instead, file, lambda path: path.symlink_to("nothing"))
        yield f"{file} /dev/zero", partial(_instead, file, lambda path: path.symlink_to("/dev/zero"))
        yield f"{file} of 256 MiB", partial(_instead, file, _sparse)
        yield f"{file} deep", partial(_write, file, b"[" * 1_000_000)
        yield f"{file} signed, deep", partial(_replace, file, b'{"a":' * 1_000_000)
        yield f"{file} signed, no object", partial(_replace, file, b"[]")
        yield f"{file} signed, empty", partial(_replace, file, b"")
    yield "no folder", shutil.rmtree
    yield "an empty folder", lambda folder: [path.unlink() for path in folder.iterdir()]
    yield "truncation on the left", partial(_write, "tokenizer_config.json", b'{"truncation_side": "left"}')
    yield "truncation upwards", partial(_replace, "tokenizer_config.json", b'{"truncation_side": "up"}')


def _case(name: str, engine: Path, change: Callable[[Path], Any], expected: str | None, expect: str = "") -> Case:
    def setup(folder: Path) -> None:
        shutil.copytree(engine, folder / "engine")
        change(folder / "engine")

    return Case(name, _answer, setup, partial(_same, expected), expect=expect, seconds=15, mib=400)


def _answer(folder: Path) -> None:
    """Open the engine and print its answers."""
    from q8trt import Engine

    with Engine.load(folder / "engine", device="cpu", threads=1) as engine:
        answers = engine.predict(PAIRS)
        print(json.dumps([each if isinstance(each, float) else [each.label, each.probabilities] for each in answers]))


def _answers_in_child(engine: Path, base: Path) -> str:
    from benchmarks.campaign.children import run_forked

    folder = base / f"{engine.name} answers"
    folder.mkdir()
    shutil.copytree(engine, folder / "engine")
    outcome = run_forked(Case("answers", _answer), folder)
    if outcome.code != 0:
        raise RuntimeError(outcome.stderr)
    return outcome.stdout


def _same(expected: str | None, outcome: Outcome, folder: Path) -> str:
    return "" if expected in (None, outcome.stdout) else f"another answer: {outcome.stdout[:200]}"


def _write(file: str, data: bytes, folder: Path) -> None:
    (folder / file).write_bytes(data)


def _write_signed(data: bytes, folder: Path) -> None:
    """Write a manifest whose digest fits, where it is JSON at all."""
    from q8trt.engine.manifest_file import digest_of

    try:
        document = json.loads(data)
        document["digest"] = digest_of(document)
        data = json.dumps(document).encode()
    except (ValueError, TypeError, RecursionError, AttributeError, KeyError):
        pass
    _write("manifest.json", data, folder)


def _fact(section: str, key: str, value: Any, folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    document[section][key] = value
    _write_signed(json.dumps(document).encode(), folder)


def _replace(file: str, data: bytes, folder: Path) -> None:
    """Write a file, and its hash into the manifest."""
    from q8trt.engine.manifest_file import load_manifest, write_manifest

    manifest = load_manifest(folder, verify=False)
    _write(file, data, folder)
    if file != "manifest.json":
        write_manifest(folder, manifest)


def _instead(file: str, make: Callable[[Path], Any], folder: Path) -> None:
    (folder / file).unlink()
    make(folder / file)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**28)


def _with_regex(regex: str, folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    _replace("tokenizer.json", json.dumps(document).encode(), folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("engine_folder", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
