"""Names from files that would act on a terminal or become markup: of nodes, tensors, tasks, labels, columns and files."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.sample import tests_on_path, tiny_checkpoint

_NAMES = (
    "\x1b[2J\x1b[31mred", "\r\x1b[Kno error", "\x9b31m", "\x07\x08", "\u202egpj.exe", "\x1b]0;title\x07", "a\nb", "\x00",
    "<script>alert(1)</script>", "![x](http://x/y.png)", "[a](javascript:b)", "[bold]x[/bold]", "[/]", ":smile:", "`x` | y",
    "{}", "%s", "{0.__class__}", "日本語", "é" * 300,
)  # fmt: skip
_RAW_MARKUP = re.compile(r"<script>|(?<!\\)\[[^\]`]*(?<!\\)\]\((http|javascript)")


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield each name in each place."""
    tests_on_path()
    checkpoint = tiny_checkpoint(base)
    for name in _NAMES:
        shown = ascii(name)[:40]
        yield Case(f"lint node: {shown}", ("lint", "x.onnx"), partial(_graph, name), seconds=60)
        yield Case(
            f"card: {shown}",
            ("pack", "engine", "--license", name.replace("\0", "")),
            partial(_engine, name),
            _card,
            writes=("*",),
        )
        for command in ("calibrate", "finetune"):
            options = ("--task", "custom", "--train_file", "rows.csv", "--validation_file", "rows.csv")
            call = (
                command,
                *options,
                "--model_name_or_path",
                checkpoint,
            )
            yield Case(f"{command} columns: {shown}", call, partial(_rows, name, "a"), seconds=60)
            labels = (*call, "--text_column_names", "sentence")
            if command == "calibrate":  # finetune takes any labels, and trains
                yield Case(f"{command} labels: {shown}", labels, partial(_rows, "label", name), seconds=60)
        yield Case(
            f"predict column: {shown}", ("predict", "--engine", "engine", "--input", "rows.csv"), partial(_scored, name)
        )
        if "\0" not in name:
            yield Case(f"file: {shown}", ("pack", name), expect="refused")
            yield Case(f"command: {shown}", (name,), expect="refused")
            yield Case(f"option: {shown}", ("lint", "x.onnx", f"--{name}"), expect="refused")


def _graph(name: str, folder: Path) -> None:
    import onnx
    from engine_fixtures import tiny_onnx

    path = tiny_onnx(folder / "x.onnx")
    model = onnx.load(path)
    model.producer_name = model.graph.name = name
    model.graph.node[5].name = name
    for node in model.graph.node:
        node.input[:] = [name if each == "q" else each for each in node.input]
        node.output[:] = [name if each == "q" else each for each in node.output]
    onnx.save(model, path)


def _engine(name: str, folder: Path) -> None:
    from pack_fixtures import MANIFEST, write_engine

    task = replace(MANIFEST.task, name=name, labels=[name, "b"], main_metric=name)
    recipe = {"name": name, "description": name, "sites": {}}
    model = replace(MANIFEST.model, name=name, model_type=name)
    write_engine(folder / "engine", task=task, model=model, recipe=recipe, metrics={name: {name: 0.5}})


def _card(outcome: Outcome, folder: Path) -> str:
    text = zipfile.ZipFile(folder / "engine.q8trt").read("MODEL_CARD.md").decode()
    outside = re.sub(r"(`+)[^`].*?\1", "", text)
    if match := _RAW_MARKUP.search(outside):
        return f"the card holds {match[0]!r}"
    return "" if text.replace("\n", "").isprintable() else "the card holds control characters"


def _rows(column: str, label: str, folder: Path) -> None:
    """A column that the task does not know, or labels that differ between rows."""
    quoted = [each.replace('"', '""') for each in (column, label)]
    rows = [f'"sentence","{quoted[0]}"'] + [f'"a text","{quoted[1]}"', '"another","b"'] * 4
    (folder / "rows.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _scored(name: str, folder: Path) -> None:
    _engine(name, folder)
    _rows(name, "a", folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("names", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
