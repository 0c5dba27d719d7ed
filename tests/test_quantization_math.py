"""The arithmetic of quantization, against NumPy and against ONNX: the integers must be the same, every one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from q8trt.export.passes.quantize import quantize_array
from q8trt.quantization.libraries import MODELOPT
from q8trt.quantization.recipe import QuantizerSpec

TENSOR = QuantizerSpec(axis=None)
CHANNEL = QuantizerSpec(axis=0)
#: amax 127 makes the scale exactly 1, so that a half is a tie and the arithmetic has no rounding of its own.
UNIT = 127.0
EDGES = np.array(
    [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.0, 127.49, 127.5, 128.5, 1e9,
     -126.5, -127.0, -127.5, -128.0, -128.5, -129.0, -1e9, 0.49999997, 1e-30],
    dtype=np.float32,
)  # fmt: skip
EDGE_INTEGERS = [0, 0, 0, 2, 2, 0, -2, -2, 126, 127, 127, 127, 127, 127, -126, -127, -128, -128, -128, -128, -128, 0, 0]


def oracle(values: np.ndarray, amax: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """(integers, dequantized): q = clip(round_half_even(x * 127/amax), -128, 127), q / (127/amax), all in float32."""
    scale = np.float32(127.0) / np.asarray(amax, np.float32)
    if scale.ndim:
        scale = scale.reshape(-1, *[1] * (values.ndim - 1))
    integers = np.clip(np.round(values * scale), -128, 127)
    return integers.astype(np.int8), (integers / scale).astype(np.float32)


def fake_quantize(values: np.ndarray, amax: np.ndarray | float, spec: QuantizerSpec) -> np.ndarray:
    quantizer = MODELOPT.new_quantizer(spec)
    amax = np.asarray(amax, np.float32)
    quantizer.amax = torch.from_numpy(amax.reshape(-1, *[1] * (values.ndim - 1)) if amax.ndim else amax)
    return quantizer(torch.from_numpy(values)).detach().numpy()


def wide(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal values, some far outside the range that amax 3 spans."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    values.flat[::7] *= 10
    return values


def test_edges_per_tensor_by_hand() -> None:
    assert fake_quantize(EDGES, UNIT, TENSOR).tolist() == EDGE_INTEGERS
    assert oracle(EDGES, UNIT)[0].tolist() == EDGE_INTEGERS  # so the oracle itself is checked by hand


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("amax", [3.0, 0.1, 1e-3, 222.0])
def test_activations_per_tensor(seed: int, amax: float) -> None:
    values = wide((4, 8, 32), seed) * np.float32(amax / 3)
    integers, dequantized = oracle(values, amax)
    result = fake_quantize(values, amax, TENSOR)
    np.testing.assert_array_equal(np.round(result * (127.0 / amax)).astype(np.int8), integers)
    np.testing.assert_array_equal(result, dequantized)
    assert integers.min() == -128  # the range is not narrow, and clipping took place at both ends
    assert integers.max() == 127


@pytest.mark.parametrize("seed", range(5))
def test_weights_per_channel(seed: int) -> None:
    values = wide((16, 33), seed) * np.logspace(-3, 3, 16, dtype=np.float32)[:, None]
    amax = np.abs(values).max(axis=1)
    integers, dequantized = oracle(values, amax)
    result = fake_quantize(values, amax, CHANNEL)
    np.testing.assert_array_equal(np.round(result * (127.0 / amax[:, None])).astype(np.int8), integers)
    np.testing.assert_array_equal(result, dequantized)
    assert (np.abs(integers.astype(int)).max(axis=1) == 127).all()  # each channel uses its whole range


def test_quantization_error_is_at_most_half_a_step() -> None:
    values = np.random.default_rng(0).uniform(-3, 3, 10_000).astype(np.float32)
    error = np.abs(fake_quantize(values, 3.0, TENSOR) - values).max()
    assert 0.45 * 3 / 127 < error <= 0.5001 * 3 / 127


@pytest.mark.parametrize("spec", [TENSOR, CHANNEL], ids=["per tensor", "per channel"])
def test_straight_through_gradient(spec: QuantizerSpec) -> None:
    values = torch.tensor([[-9.0, -3.0001, -3.0, -2.9, 0.0, 0.01, 2.9, 3.0, 3.0001, 9.0]] * 2, requires_grad=True)
    amax = torch.tensor(3.0) if spec is TENSOR else torch.tensor([[3.0], [0.01]])
    quantizer = MODELOPT.new_quantizer(spec)
    quantizer.amax = amax
    upstream = torch.arange(1.0, 21.0).reshape(2, 10)
    quantizer(values).backward(upstream)
    assert torch.equal(values.grad, upstream * (values.detach().abs() <= amax).float())
    inside = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    assert (values.grad[0] / upstream[0]).tolist() == inside


def one_node(dtype: int, ndim: int, scales: np.ndarray, axis: int | None) -> onnx.ModelProto:
    """A model of a single QuantizeLinear, x -> y."""
    attributes = {} if axis is None else {"axis": axis}
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], **attributes)],
        "q",
        [helper.make_tensor_value_info("x", dtype, [None] * ndim)],
        [helper.make_tensor_value_info("y", TensorProto.INT8, [None] * ndim)],
        [numpy_helper.from_array(scales, "scale"), numpy_helper.from_array(np.zeros_like(scales, np.int8), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def onnx_says(values: np.ndarray, scales: np.ndarray, axis: int | None) -> list[np.ndarray]:
    """Return `values` after Q/DQ in the reference evaluator and in ONNX Runtime.

    Before opset 23, ONNX does not specify the precision of FP16's division. ONNX Runtime divides in FP32. The reference
    evaluator divides in FP16, so its input is widened here.
    """
    answers = []
    for dtype in (np.float32, values.dtype):
        model = one_node(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), values.ndim, scales.astype(dtype), axis)
        if dtype == np.float32:
            answers.append(np.asarray(ReferenceEvaluator(model).run(None, {"x": values.astype(dtype)})[0]))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"x": values.astype(dtype)})[0])
    return answers


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_quantize_array_is_quantize_linear(dtype: type, axis: int | None, seed: int) -> None:
    values = wide((24, 40), seed).astype(dtype)
    scales = np.array(3 / 127) if axis is None else np.abs(values).max(axis=1 - axis) / 127
    scales = scales.astype(dtype)
    integers = quantize_array(values, scales, axis)
    assert integers.dtype == np.int8
    for expected in onnx_says(values, scales, axis):
        np.testing.assert_array_equal(integers, expected)


def test_quantize_array_edges() -> None:
    one = np.ones((), np.float32)
    assert quantize_array(EDGES, one, None).tolist() == EDGE_INTEGERS
    for says in onnx_says(EDGES, one, None):
        assert says.tolist() == EDGE_INTEGERS
    halves = EDGES.clip(-60000, 60000).astype(np.float16)
    for says in onnx_says(halves, one.astype(np.float16), None):
        np.testing.assert_array_equal(quantize_array(halves, one.astype(np.float16), None), says)


def test_quantize_array_beside_ties() -> None:
    """Values that lie on or next to a tie for their scale: dividing and multiplying by the inverse differ here."""
    scales = np.random.default_rng(0).uniform(1e-3, 1, 64).astype(np.float32)
    values = (np.arange(-128, 128, dtype=np.float32) + np.float32(0.5)) * scales[:, None]
    integers = quantize_array(values, scales, 0)
    for expected in onnx_says(values, scales, 0):
        np.testing.assert_array_equal(integers, expected)
    inverse = np.clip(np.rint(values * (1 / scales)[:, None]), -128, 127)
    assert (inverse != integers).any()  # so the test can tell


def test_quantize_array_axis_defaults_to_one_as_in_onnx() -> None:
    values = wide((3, 3), 0)
    scales = np.array([1.0, 0.1, 0.01], np.float32)
    integers = quantize_array(values, scales, None)
    for expected in onnx_says(values, scales, None):
        np.testing.assert_array_equal(integers, expected)
    assert not np.array_equal(integers, quantize_array(values, scales, 0))


def test_one_channel_has_one_scale() -> None:
    values = wide((1, 5), 0)
    integers = quantize_array(values, np.array([0.02], np.float32), 0)
    np.testing.assert_array_equal(integers, quantize_array(values, np.array(0.02, np.float32), None))


@pytest.mark.parametrize("spec", [TENSOR, CHANNEL], ids=["per tensor", "per channel"])
def test_fake_quantization_and_onnx_agree_on_all_but_ties(spec: QuantizerSpec) -> None:
    """x * (127/amax) and x / (amax/127) round differently in the last bit, which shows only beside a tie."""
    values = wide((64, 100), 1)
    amax = np.array(3.0, np.float32) if spec is TENSOR else np.abs(values).max(axis=1)
    scale = (amax / np.float32(127)).astype(np.float32)
    torch_says, _ = oracle(values, amax)
    onnx_integers = quantize_array(values, scale, spec.axis)
    steps = np.abs(values / (scale if spec is TENSOR else scale[:, None]))
    beside_a_tie = np.abs(steps % 1 - 0.5) < 1e-4
    np.testing.assert_array_equal(torch_says[~beside_a_tie], onnx_integers[~beside_a_tie])
    assert beside_a_tie.mean() < 1e-2
