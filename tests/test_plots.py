"""The picture of a sensitivity measurement: what is drawn where, and that it can be read."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from q8trt.errors import ConfigError
from q8trt.reporting.sensitivity_plot import SensitivityPlot, plot_sensitivity, sensitivity_figure

NAMES = ("qkv_input", "gelu_out", "ffn_residual.skip")
PLOT = SensitivityPlot(
    title="What it costs",
    subtitle="STS-B dev, 256 rows",
    unit="mean squared difference of the logits",
    cells={("qkv_input", 0): 1e-6, ("gelu_out", 0): 1e-3, ("qkv_input", 1): 2e-5, ("ffn_residual.skip", 1): 0.0},
    layers={1: 2e-5, 0: 0.02},
    names=dict(zip(NAMES, (3e-5, 1e-3, 0.0), strict=True)),
    outside={"embeddings.word": 5e-4, "classifier.weight": 1e-5},
)


def panels(plot: SensitivityPlot) -> dict[str, Any]:
    """Label -> axes, drawn once, so that positions and texts are final."""
    figure = sensitivity_figure(plot)
    figure.draw_without_rendering()
    return {str(axes.get_label()): axes for axes in (*figure.axes, *(c for a in figure.axes for c in a.child_axes))}


def lengths(axes: Any) -> list[float]:
    """Return the lengths of the bars."""
    horizontal = axes.get_label() != "layers"
    return [bar.get_width() if horizontal else bar.get_height() for bar in axes.patches]


def test_every_cost_is_where_it_belongs() -> None:
    drawn = panels(PLOT)
    sites = drawn["sites"]
    assert [label.get_text() for label in sites.get_yticklabels()] == list(NAMES)
    assert [label.get_text() for label in sites.get_xticklabels()] == ["0", "1"]
    image = np.ma.filled(sites.images[0].get_array(), np.nan)
    # What costs nothing takes the least cost's colour; what is not quantized stays empty.
    np.testing.assert_array_equal(image, [[1e-6, 2e-5], [1e-3, np.nan], [np.nan, 1e-6]])
    texts = {text.get_position(): text.get_text() for text in sites.texts}
    assert texts == {(0, 0): "1e-6", (0, 1): "1e-3", (1, 0): "2e-5", (1, 2): "0"}
    assert lengths(drawn["layers"]) == [0.02, 2e-5]
    assert lengths(drawn["names"]) == [3e-5, 1e-3, 0.0]
    assert lengths(drawn["outside"]) == [5e-4, 1e-5]
    assert [label.get_text() for label in drawn["outside"].get_yticklabels()] == [
        "embeddings.word",
        "classifier.weight",
    ]
    assert [text.get_text() for text in drawn["layers"].texts] == ["2e-2", "2e-5"]
    assert drawn["scale"].get_title("left") == PLOT.unit


def test_all_panels_share_one_logarithmic_scale() -> None:
    drawn = panels(PLOT)
    norm = drawn["sites"].images[0].norm
    assert (norm.vmin, norm.vmax) == (1e-6, 0.02)
    assert drawn["layers"].get_yscale() == drawn["names"].get_xscale() == drawn["outside"].get_xscale() == "log"
    assert drawn["names"].get_xlim() == drawn["outside"].get_xlim() == drawn["layers"].get_ylim()
    # A site is level with its bar, in the order of the names from the top.
    assert drawn["names"].get_ylim() == drawn["sites"].get_ylim()
    assert drawn["sites"].get_ylim()[0] > drawn["sites"].get_ylim()[1]


@pytest.mark.parametrize("layers", [1, 6, 24])
def test_nothing_is_cut_off_or_on_top_of_something_else(layers: int) -> None:
    cells = {(name, layer): 10.0 ** -(layer % 7 + 1) for name in NAMES for layer in range(layers)}
    plot = replace(PLOT, cells=cells, layers=dict.fromkeys(range(layers), 0.1))
    figure = sensitivity_figure(plot)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = figure.bbox.size
    boxes: list[Any] = [text.get_window_extent(renderer) for text in figure.texts]
    panel_boxes: list[Any] = [axes.get_tightbbox(renderer) for axes in figure.axes]
    for box in (*boxes, *panel_boxes):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
    assert not any(text.overlaps(panel) for text in boxes for panel in panel_boxes)
    assert not boxes[0].overlaps(boxes[1])
    assert not any(a.overlaps(b) for a, b in itertools.combinations(panel_boxes, 2))


def test_a_recipe_with_nothing_outside_the_layers_or_nothing_in_them() -> None:
    assert "outside" not in panels(replace(PLOT, outside={}))
    assert set(panels(replace(PLOT, cells={}, layers={}, names={}))) == {"outside"}


@pytest.mark.parametrize("cost", [0.0, 0.5])
def test_equal_costs_have_a_scale_too(cost: float) -> None:
    plot = SensitivityPlot("t", "s", "u", {("gelu_out", 0): cost}, {0: cost}, {"gelu_out": cost}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm = panels(plot)["sites"].images[0].norm
    assert 0 < norm.vmin < norm.vmax


def test_png_and_svg_and_nothing_else(tmp_path: Path) -> None:
    for name in ("plot.png", "plot.SVG"):
        plot_sensitivity(tmp_path / name, PLOT)
    picture = imread(tmp_path / "plot.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 800
    assert picture.std() > 0.05  # not an empty page
    assert "<svg" in (tmp_path / "plot.SVG").read_text(encoding="utf-8")[:500]
    with pytest.raises(ConfigError, match=r"plot\.pdf: a plot must end in \.png or \.svg"):
        plot_sensitivity(tmp_path / "plot.pdf", PLOT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.SVG", "plot.png"]
