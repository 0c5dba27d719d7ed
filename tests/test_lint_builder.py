"""TensorRT-RTX, where it is installed, refuses what the linter calls an error and builds what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lint_graphs import make_encoder

from q8trt.engine.backend import Backend, find_backend
from q8trt.lint import lint

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def backend() -> Backend:
    return find_backend("tensorrt_rtx")


def builds(backend: Backend, path: Path) -> bool:
    """Return whether the builder makes a plan for the machine's default targets."""
    trt = backend.module
    builder = trt.Builder(backend.logger())
    network = builder.create_network(0)
    if not trt.OnnxParser(network, backend.logger()).parse_from_file(str(path)):
        return False
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        profile.set_shape(network.get_input(index).name, (1, 8), (2, 16), (4, 32))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, True),
        ({"half": False, "key_first": True}, True),
        ({"fused": True}, True),
        ({"float_weights": True}, True),
        ({"computed_scale": True}, True),
        ({"extra": "again-other"}, True),
        ({"wrong_axis": True}, True),
        ({"zero_point": 3}, False),
        ({"integers": np.uint8}, False),
        ({"scale": 0.0}, False),
        ({"scale": -0.5}, False),
        ({"gather_first": True}, False),
    ],
    ids=str,
)
def test_errors_are_what_the_builder_refuses(
    changes: dict[str, Any], accepted: bool, backend: Backend, tmp_path: Path
) -> None:
    path = make_encoder(tmp_path / "model.onnx", layers=1, **changes)
    assert lint(path).reaches("error") != accepted
    assert builds(backend, path) == accepted
