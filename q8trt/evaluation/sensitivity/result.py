"""The results of a sensitivity analysis as JSON, as a plot and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q8trt import files
from q8trt.engine.manifest import SAMPLE_LABEL
from q8trt.evaluation.sensitivity.probe import Cost
from q8trt.evaluation.sensitivity.scoring import PARTIAL_FILE, RESULT_FILE, Sensitivity
from q8trt.evaluation.sensitivity.search import Placement
from q8trt.reporting.sensitivity_plot import SensitivityPlot, plot_sensitivity
from q8trt.reporting.table import Column, Table, words
from q8trt.reporting.terminal import print_facts, print_table, say
from q8trt.tasks.data import counted
from q8trt.tasks.metrics import direction

if TYPE_CHECKING:
    from rich.console import Console

PLOT_FILE = "sensitivity.png"


def write_result(folder: Path, measured: Sensitivity, model: str, more: dict[str, Any]) -> tuple[Path, Path]:
    """Write `folder`/sensitivity.json and sensitivity.png, and remove the file of intermediate scores.

    Args:
        folder: the folder of the files; it is made if it does not exist.
        measured: the measurement.
        model: name of the model, for the title and the JSON file.
        more: JSON-ready facts that are stored before the scores, such as provenance and the search for a recipe.

    Returns:
        the paths of the JSON file and of the plot.
    """
    data = measured.to_dict()
    scores = data.pop("scores")
    files.write_json(folder / RESULT_FILE, {"model": model, **data, **more, "scores": scores})
    (folder / PARTIAL_FILE).unlink(missing_ok=True)
    plot_sensitivity(folder / PLOT_FILE, picture(measured, model))
    return folder / RESULT_FILE, folder / PLOT_FILE


def picture(measured: Sensitivity, model: str) -> SensitivityPlot:
    """Return the plot of the mean squared difference of the logits for every part."""
    costs = {group: {key: cost.logits_mse for key, cost in part.items()} for group, part in measured.scores.items()}
    sites = [(site, costs["sites"][site.key]) for site in measured.sites]
    return SensitivityPlot(
        title=f"Cost of quantizing each site alone: {model}, recipe {measured.setup.recipe['name']}",
        subtitle=_summary(measured),
        unit="mean squared difference of the logits",
        cells={(site.name, site.layer): cost for site, cost in sites if site.layer is not None},
        layers={int(layer): cost for layer, cost in costs["layers"].items()},
        names=costs["names"],
        outside={site.key: cost for site, cost in sites if site.layer is None},
    )


def _summary(measured: Sensitivity) -> str:
    setup, everything = measured.setup, measured.scores["everything"]["all"]
    data = SAMPLE_LABEL if setup.is_sample else f"{setup.task} {setup.split}"
    quantized = measured.float_score_x100 - direction(setup.metric) * everything.drop_x100
    rows = counted(setup.rows, setup.questions)
    if not setup.has_labels:
        return f"{data}, {rows} without labels; {setup.metric} x100 to FP32: {quantized:.2f} with everything quantized"
    return (
        f"{data}, {rows}; {setup.metric} x100: {measured.float_score_x100:.2f} in float, "
        f"{quantized:.2f} with everything quantized"
    )


def print_sensitivity(measured: Sensitivity, console: Console, model: str, device: str, most: int = 10) -> None:
    """Print the model, recipe, data and device, the `most` most sensitive sites, the layers, and the cost of all sites."""
    metric, scores = measured.setup.metric, measured.scores
    say(console, "The cost of quantizing each site alone", "bold")
    recipe = str(measured.setup.recipe["name"])
    print_facts(console, [("model", model), ("recipe", recipe), ("data", _summary(measured)), ("device", device)])
    say(console)
    sites = [(key, scores["sites"][key]) for key in measured.ranking[:most]]
    title = "most sensitive sites" if len(scores["sites"]) > most else "sites"
    print_table(console, _table(title, sites, metric))
    layers = [(f"layer {layer}", cost) for layer, cost in scores["layers"].items()]
    print_table(console, _table("all sites of", [*layers, ("the model", scores["everything"]["all"])], metric))


def _table(title: str, costs: Sequence[tuple[str, Cost]], metric: str) -> Table:
    columns = (
        words(title), Column("logits, mean\nsquared difference", format=".1e"),
        Column("largest\ndifference", format=".3f"), Column(f"{metric} x100\nlost", format="+.2f"),
    )  # fmt: skip
    return Table(columns, tuple((name, cost.logits_mse, cost.logits_max_abs, cost.drop_x100) for name, cost in costs))


def placement_lines(placement: Placement, metric: str) -> list[str]:
    """Return two lines: the number of quantized sites with their cost, and the sites that stay in floating point."""
    count = placement.quantized + len(placement.off)
    stays = f"in float: {', '.join(placement.off)}" if placement.off else "no site had to be switched off"
    lost = f"{metric} x100 on the whole development set: {placement.drop_x100:+.2f} lost, calibrated again"
    return [f"recipe {placement.recipe.name}: {placement.quantized} of {count} sites quantized; {lost}", f"  {stays}"]
