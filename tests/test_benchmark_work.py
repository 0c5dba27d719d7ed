"""Operations counted, peaks known, clocks watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q8trt.errors import EngineError
from q8trt.hardware.gpu import GpuState
from q8trt.quantization.precision import Precision
from q8trt.runtime.timing.hardware import PEAKS, clock_warning, peak_source, peak_tops
from q8trt.runtime.timing.work import Work, work_of_onnx

pytestmark = pytest.mark.usefixtures("quick_export")


def test_work_of_bert_is_the_published_one() -> None:
    # 22.35 and 78.92 GFLOP a sequence of 128 tokens, as in TensorRT's and MLPerf's figures.
    assert Work.of_encoder(12, 768, 3072).flop(1, 128) / 1e9 == pytest.approx(22.35, abs=0.005)
    assert Work.of_encoder(24, 1024, 4096).flop(1, 128) / 1e9 == pytest.approx(78.92, abs=0.005)
    assert Work.of_encoder(12, 768, 3072).flop(32, 128) == 32 * Work.of_encoder(12, 768, 3072).flop(1, 128)


def test_work_by_torchs_own_counter(tiny_model: Callable[..., Any], tiny_batch: Callable[..., Any]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = tiny_model(), tiny_batch(shape=(3, 20))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**batch)
    head = 3 * 2 * (32 * 32 + 32)  # pooler and classifier, one token a sequence
    assert Work.of_encoder(2, 32, 64).flop(3, 20) == counter.get_total_flops() - head


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_work_is_read_from_the_graph(
    precision: str, tiny_model: Callable[..., Any], tiny_quantized: Callable[..., Any], tmp_path: Path
) -> None:
    from q8trt.export.onnx import export_onnx

    model = tiny_model() if precision == "fp32" else tiny_quantized()[0]
    export_onnx(model, tmp_path / "model.onnx", precision, ["input_ids", "attention_mask", "token_type_ids"])
    assert work_of_onnx(tmp_path / "model.onnx") == Work.of_encoder(2, 32, 64)


def test_work_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.onnx"):
        work_of_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("device", "int8", "fp16"),
    [
        ("NVIDIA H100 80GB HBM3", 1979, 989),
        ("NVIDIA H100 PCIe", 1513, 756),
        ("NVIDIA H200", 1979, 989),
        ("NVIDIA A100-SXM4-40GB", 624, 312),
        ("NVIDIA L4", 242, 121),
        ("NVIDIA L40S", 733, 362),
        ("NVIDIA GeForce RTX 4090", 660.6, 165.2),
        ("NVIDIA GeForce RTX 5090", 838, 209.5),
        ("Tesla T4", 130, 65),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA RTX A1000", None, None),
        ("cpu", None, None),
    ],
)
def test_peaks(device: str, int8: float | None, fp16: float | None) -> None:
    assert peak_tops(device, Precision.INT8) == peak_tops(device, Precision.INT8_FP16) == int8
    assert peak_tops(device, Precision.FP16) == fp16
    assert peak_tops(device, Precision.FP32) is None
    assert (peak_source(device) is None) == (int8 is None)


def test_every_peak_has_a_source() -> None:
    assert all(peak.source and peak.int8 > peak.fp16 > 0 for peak in PEAKS)


def state(clock: float | None) -> GpuState:
    return GpuState("NVIDIA L4", "570.1", clock, 2040.0, 900.0, 60.0, None)


def test_clock_warning() -> None:
    assert clock_warning([]) is None
    assert clock_warning([state(None)]) is None
    assert clock_warning([state(2000), state(1910)]) is None
    warning = clock_warning([state(2000), state(1500)])
    assert warning is not None
    assert "moved between 1500 and 2000 MHz" in warning
