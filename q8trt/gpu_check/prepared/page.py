"""The results of a prepared check: JSON after each step, one HTML page at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.errors import ConfigError
from q8trt.gpu_check.journal import CheckResult
from q8trt.gpu_check.page import STEM
from q8trt.gpu_check.prepared.kit import Kit
from q8trt.reporting.html import render
from q8trt.reporting.table import Column, Phrase, Table, Tone, words

if TYPE_CHECKING:
    from q8trt.gpu_check.prepared.schedule import Progress

SCHEMA = 2
_TONES: dict[str, Tone] = {
    "passed": "good", "failed": "bad", "skipped": "warning", "not reached": "warning", "measured": "plain",
}  # fmt: skip


def check_folder(folder: Path) -> None:
    """Raise ConfigError if a folder has files with the names of the results that are not results of a check."""
    files.check_report(
        folder / f"{STEM}.json", [folder / f"{STEM}.html"], keys=("schema", "checks"), option="--output_dir"
    )


@dataclass(frozen=True)
class Results:
    """The results of an earlier check: its steps by name, the library that ran the engines, and the device."""

    checks: dict[str, CheckResult] = field(default_factory=dict)
    title: str = ""
    device: str = ""


def read_results(folder: Path, kit: Kit) -> Results:
    """Return the results of an earlier check of the same kit; empty ones if there are none.

    Raises:
        ConfigError: the results are damaged or belong to another kit.
    """
    path = folder / f"{STEM}.json"
    if not path.is_file():
        return Results()
    try:
        record = files.read_json(path)
        checks = [{key: value for key, value in check.items() if key != "estimate_s"} for check in record["checks"]]
        results = [files.decode(CheckResult, check) for check in checks]
        title, device, kit_digest = str(record["backend"]), str(record["device"]), record["kit"]
    except (files.MalformedError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}; run the check without --resume") from None
    if kit_digest != kit.digest:
        raise ConfigError(f"{path} has the results of another prepared check; run the check without --resume")
    return Results({check.check: check for check in results}, title, device)


def to_dict(progress: Progress, kit: Kit, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the results as JSON. ``passed`` is True if every step was reached and none failed."""
    estimates = {step.name: step.estimate_s for step in kit.steps}
    return {
        "schema": SCHEMA,
        "passed": progress.finished and not progress.failed and not progress.counts["not reached"],
        "finished": progress.finished,
        "backend": progress.title,
        "device": progress.device,
        "budget_s": progress.budget_s,
        "seconds": progress.seconds,
        "counts": progress.counts,
        "checks": [{**asdict(check), "estimate_s": estimates[check.check]} for check in progress.checks],
        "prepared": kit.provenance,
        "kit": kit.digest,
        "provenance": provenance,
    }


def summary(progress: Progress) -> str:
    """Return ``"6 passed, 0 failed, 3 measured, 1 skipped, 4 not reached; 402 of 420 s"``."""
    counts = ", ".join(f"{count} {result}" for result, count in progress.counts.items())
    return f"{counts}; {progress.seconds:.0f} of {progress.budget_s:.0f} s"


def write_json(folder: Path, progress: Progress, kit: Kit, provenance: dict[str, Any]) -> None:
    """Write ``gpu-check.json``."""
    files.write_json(folder / f"{STEM}.json", to_dict(progress, kit, provenance))


def write_html(folder: Path, progress: Progress, kit: Kit, provenance: dict[str, Any]) -> None:
    """Write ``gpu-check.html``. Raises ImportError without jinja2."""
    text = render(
        "gpu_check",
        title=f"GPU check: {progress.title} on {progress.device}",
        summary=summary(progress),
        failures=[Phrase(f"{each.check}: {each.figure}", "bad") for each in progress.checks if each.result == "failed"],
        checks=check_table(progress, kit),
        tables=[("Latency", latency_table(progress)), *forecast_tables(progress)],
        reports=[],
        provenance={"backend": progress.title, "device": progress.device, **provenance},
    )
    files.write_text(folder / f"{STEM}.html", text)


def check_table(progress: Progress, kit: Kit) -> Table:
    """Return a line per step."""
    columns = (
        words("step", wraps=True), words("result"), words("figure", wraps=True), Column("seconds", format=".1f"),
        Column("estimate", "s", format=".0f"),
    )  # fmt: skip
    estimates = {step.name: step.estimate_s for step in kit.steps}
    rows = [
        (each.check, Phrase(each.result, _TONES[each.result]), each.figure, each.seconds, estimates[each.check])
        for each in progress.checks
    ]
    return Table(columns, tuple(rows))


def latency_table(progress: Progress) -> Table:
    """Return a line per step, engine and shape; the speed is relative to the first engine of the step."""
    columns = (
        words("step", wraps=True), words("engine", wraps=True), words("shape"), Column("median", "ms", format=".3f"),
        Column("speed", format=".2f"), Column("share of peak", format=".0%"),
    )  # fmt: skip
    rows = []
    for check in progress.checks:
        timed = check.details.get("timed", ())
        for row in timed:
            for first, latency in zip(timed[0]["latencies"], row["latencies"], strict=True):
                shape = f"{latency['batch']}x{latency['sequence']}"
                speed = first["median_ms"] / latency["median_ms"]
                rows.append((check.check, row["engine"], shape, latency["median_ms"], speed, latency["peak_share"]))
    return Table(columns, tuple(rows))


def forecast_tables(progress: Progress) -> list[tuple[str, Table]]:
    """Return a table of the linter's agreements with each plan, and one of all disagreements."""
    agreed, apart = [], []
    for check in progress.checks:
        if not (forecast := check.details.get("forecast")):
            continue
        counts = ", ".join(
            f"{kind} {forecast['agreements'][kind]} of {number}"
            for kind, number in forecast["sites"].items() if number
        )  # fmt: skip
        agreed.append(
            (check.check, counts, len(forecast["reformats"]), len(forecast["fp32_leftovers"]), forecast["layers"])
        )
        apart += [
            (check.check, each["name"], each["forecast"], each["plan"], ", ".join(each["layers"])[:200])
            for each in forecast["disagreements"]
        ]
    columns = words("plan", wraps=True), words("forecast holds for", wraps=True)
    counts_of = (Column("reformats", format="d"), Column("FP32 layers", format="d"), Column("layers", format="d"))
    details = (
        words("plan", wraps=True), words("part", wraps=True), words("forecast"), words("in the plan"),
        words("layers", wraps=True),
    )  # fmt: skip
    return [
        ("Forecast against the plan", Table((*columns, *counts_of), tuple(agreed))),
        ("Disagreements", Table(details, tuple(apart))),
    ]
