"""Run an area, keep its results in one JSON file beside those of the other areas, and show them as Markdown."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.campaign.children import warm_up
from benchmarks.campaign.driver import KINDS, Case, Outcome, Verdict, run_case
from q8trt import files
from q8trt.hardware.provenance import provenance

RESULTS = Path(__file__).resolve().parents[1] / "results" / "campaign.json"
#: Refusals of an area whose words are stored, one of each kind.
_EXAMPLES = 12


def _parser(area: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.campaign {area}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="cases whose name holds this; results are not stored"
    )
    parser.add_argument("--limit", type=int, help="the first cases; results are not stored")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the folders of cases that ended badly")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the JSON file (default: benchmarks/results)")
    return parser


def run(area: str, cases: Callable[[Path, Random], Iterator[Case]], argv: Sequence[str] | None = None) -> int:
    """See `driver.run_area`."""
    options = _parser(area).parse_args(argv)
    warm_up()
    verdicts = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name, "shared")
        base.mkdir()
        chosen = (case for case in cases(base, Random(f"{area} {options.seed}")) if options.only in case.name)
        for number, case in enumerate(chosen):
            if number == options.limit:
                break
            folder = Path(name, f"case-{number}")
            folder.mkdir()
            verdict, outcome = run_case(case, folder)
            verdicts.append(verdict)
            bad = verdict.kind not in KINDS[:2]
            if bad or options.verbose:
                _show(verdict, outcome)
            if bad and options.keep:
                shutil.copytree(
                    folder, options.keep / re.sub(r"[^\w-]+", "-", verdict.case)[:80], symlinks=True, dirs_exist_ok=True
                )
            _remove(folder)
    result = _result(verdicts, options.seed)
    print(f"{area}: {len(verdicts)} cases; " + ", ".join(f"{result[kind]} {kind}" for kind in KINDS))
    if not options.only and options.limit is None:
        store(options.results, area, result)
    return int(any(result[kind] for kind in KINDS[2:]))


def _remove(folder: Path) -> None:
    for path in (folder, folder.with_name(f"{folder.name}.output")):
        for place, _, _ in os.walk(path):  # a case may have taken its own permissions away
            with contextlib.suppress(OSError):
                Path(place).chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def _show(verdict: Verdict, outcome: Outcome) -> None:
    print(
        f"{verdict.kind:9} {verdict.case!r}: {verdict.reason[:300]!r} ({outcome.seconds:.2f} s, {outcome.mib:.0f} MiB)",
        flush=True,
    )


def _result(verdicts: Sequence[Verdict], seed: int) -> dict[str, Any]:
    counts = Counter(verdict.kind for verdict in verdicts)
    lines: dict[str, str] = {}
    for verdict in verdicts:
        if verdict.kind == "refused":
            lines.setdefault(re.sub(r"[\d'\"].*", "", verdict.reason), verdict.reason)
    groups = Counter(re.split(r"[:\d]", verdict.case)[0].strip() for verdict in verdicts)
    return {
        "cases": len(verdicts),
        **{kind: counts[kind] for kind in KINDS},
        "seed": seed,
        "groups": dict(groups),
        "refusals": [_printable(line) for line in list(lines.values())[:_EXAMPLES]],
        "failures": [
            {"case": _printable(each.case), "kind": each.kind, "reason": _printable(each.reason)}
            for each in verdicts
            if each.kind not in KINDS[:2]
        ],
    }


def _printable(text: str) -> str:
    """`text` in one line that fits a table, without the folder that the case ran in."""
    text = re.sub(r"/\S*?/case-\d+/?", "", text)
    return text.encode("unicode_escape", "replace").decode("ascii")[:300] if not text.isprintable() else text[:300]


def store(path: Path, area: str, result: dict[str, Any]) -> None:
    """Put an area's result into the JSON file, and write all of it as Markdown beside it."""
    with files.exclusive(path):
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        argv = [str(Path("benchmarks", "campaign", "__main__.py")), *sys.argv[1:]]
        origin = provenance(argv)
        origin["command"] = origin["command"].replace("-m campaign", "-m benchmarks.campaign", 1)
        results[area] = {**result, "provenance": origin}
        files.write_json(path, dict(sorted(results.items())))
        files.write_text(path.with_suffix(".md"), markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """The results as a table, the failures below it."""

    def cell(value: Any) -> str:
        return str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")

    lines = [
        "# Campaign of bad input",
        "",
        "| area | cases | " + " | ".join(KINDS) + " | taken |",
        "|---" * (len(KINDS) + 3) + "|",
    ]
    for area, result in sorted(results.items()):
        origin = result["provenance"]
        taken = (
            f"{origin['date_utc'][:10]}, {str(origin['git_commit'])[:7]}{' (changed)' if origin['git_dirty'] else ''}"
        )
        lines.append(
            "| " + " | ".join(map(str, [area, result["cases"], *(result[kind] for kind in KINDS), taken])) + " |"
        )
    lines += ["", "`python -m benchmarks.campaign [AREA ...]` takes the figures again; seeds are fixed."]
    for area, result in sorted(results.items()):
        if result["failures"]:
            lines += ["", f"## {area}", ""]
            lines += [f"- {each['kind']}, {cell(each['case'])}: {cell(each['reason'])}" for each in result["failures"]]
    return "\n".join(lines) + "\n"
