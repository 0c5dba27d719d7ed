"""A measurement as JSON, as a picture and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.evaluation.sensitivity.probe import Cost
from q8trt.evaluation.sensitivity.scoring import PARTIAL_FILE, RESULT_FILE, Sensitivity
from q8trt.reporting.sensitivity_plot import SensitivityPlot, plot_sensitivity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLOT_FILE = "sensitivity.png"


def write_result(folder: Path, found: Sensitivity, model: str, more: dict[str, Any]) -> tuple[Path, Path]:
    """Write `folder`/sensitivity.json and sensitivity.png; the scores kept in between go away.

    Args:
        folder: made where it does not exist.
        found: what was measured.
        model: a word for the model, for title and JSON.
        more: JSON-ready, stored before the scores: provenance, and the search for a recipe.

    Returns:
        the two paths.
    """
    data = found.to_dict()
    scores = data.pop("scores")
    files.write_json(folder / RESULT_FILE, {"model": model, **data, **more, "scores": scores})
    (folder / PARTIAL_FILE).unlink(missing_ok=True)
    plot_sensitivity(folder / PLOT_FILE, picture(found, model))
    return folder / RESULT_FILE, folder / PLOT_FILE


def picture(found: Sensitivity, model: str) -> SensitivityPlot:
    """What there is to draw: the mean squared difference of the logits, of every part."""
    costs = {group: {key: cost.logits_mse for key, cost in part.items()} for group, part in found.scores.items()}
    cells, outside = {}, {}
    for key, cost in costs["sites"].items():
        if key.startswith("layer."):
            _, layer, name = key.split(".", 2)
            cells[name, int(layer)] = cost
        else:
            outside[key] = cost
    return SensitivityPlot(
        title=f"What quantizing each site alone costs: {model}, recipe {found.setup['recipe']['name']}",
        subtitle=_summary(found),
        unit="mean squared difference of the logits",
        cells=cells,
        layers={int(layer): cost for layer, cost in costs["layers"].items()},
        names=costs["names"],
        outside=outside,
    )


def _summary(found: Sensitivity) -> str:
    setup, everything = found.setup, found.scores["everything"]["all"]
    data = "built-in sample, not GLUE" if setup["is_sample"] else f"{setup['task']} {setup['split']}"
    return (
        f"{data}, {setup['rows']} rows; {setup['metric']} x100: {found.float_score_x100:.2f} in float, "
        f"{found.float_score_x100 - everything.drop_x100:.2f} with everything quantized"
    )


def print_sensitivity(found: Sensitivity, console: Console, most: int = 10) -> None:
    """Print the `most` sensitive sites, the layers, and what everything together costs."""
    metric, scores = found.setup["metric"], found.scores
    console.print(_summary(found), highlight=False, soft_wrap=True)
    console.print()
    sites = [(key, scores["sites"][key]) for key in found.ranking[:most]]
    title = "most sensitive sites" if len(scores["sites"]) > most else "sites"
    console.print(_table(title, sites, metric))
    console.print()
    layers = [(f"layer {layer}", cost) for layer, cost in scores["layers"].items()]
    console.print(_table("all sites of", [*layers, ("the model", scores["everything"]["all"])], metric))
    console.print()


def _table(title: str, rows: Iterable[tuple[str, Cost]], metric: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for header in ("logits, mean\nsquared difference", "largest\ndifference", f"{metric} x100\nlost"):
        table.add_column(header, justify="right", no_wrap=True)
    for name, cost in rows:
        table.add_row(name, f"{cost.logits_mse:.1e}", f"{cost.logits_max_abs:.3f}", f"{cost.drop_x100:+.2f}")
    return table
