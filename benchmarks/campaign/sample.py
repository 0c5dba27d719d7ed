"""The starting point of several areas: a calibrated run of the tiny model, with its data, as the tests make it."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.campaign.children import in_child

TESTS = Path(__file__).resolve().parents[2] / "tests"


def tests_on_path() -> None:
    """Let the fixtures of the tests be imported."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))


def tiny_checkpoint(base: Path) -> Path:
    """Write a fine-tuned BERT of two layers; returns its folder."""
    tests_on_path()

    def write() -> None:
        from conftest import make_model, make_tokenizer

        from q8trt.models.checkpoints import save_checkpoint

        save_checkpoint(base / "checkpoint", make_model(), make_tokenizer())

    in_child(write)
    return base / "checkpoint"


def calibrated_run(base: Path) -> Path:
    """Write a run with finished FP32 and PTQ stages below ``runs``; returns the run's folder."""
    tests_on_path()
    from tiny_data import write_sts_b

    checkpoint, data = tiny_checkpoint(base), write_sts_b(base / "data", 16, 8)

    def write() -> None:
        import q8trt

        q8trt.calibrate(
            checkpoint, task="STS-B", data_dir=data, max_seq_length=32, output_dir=base / "runs" / "tiny"
        )  # fmt: skip

    in_child(write)
    return base / "runs" / "tiny"
