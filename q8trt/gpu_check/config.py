"""The parts of a check of a GPU, and the tolerances of engines against torch."""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.engine.shapes import Shape, ShapeProfile, bucket_profiles, largest
from q8trt.quantization.precision import Precision
from q8trt.runtime.timing.config import TimingConfig, grid


@dataclass(frozen=True)
class Tolerance:
    """The largest and the mean absolute difference of logits that are allowed."""

    largest: float
    mean: float


#: weights -> precision -> tolerance, against the torch model that the engine was exported from (INT8: the fake-quantized one).
#: Two to ten times the figures of benchmarks/results/export-*-full.json on ONNX Runtime's CPU, where FP32 is exact: MiniLM
#: 0.0028 (mean 0.0004) in FP16 and 0.76 (0.044) in INT8 with FP16, over logits to 5; BERT-base and -large 0.0005 (0.0001) and
#: 0.056 (0.020), over logits to 0.3. FP32 has FP16's, because GPUs multiply FP32 in TF32, whose mantissa is as short as FP16's.
TOLERANCES = {
    "real": {
        Precision.FP32: Tolerance(0.03, 0.004),
        Precision.FP16: Tolerance(0.03, 0.004),
        Precision.INT8_FP16: Tolerance(1.5, 0.1),
    },
    "random": {
        Precision.FP32: Tolerance(0.005, 0.0015),
        Precision.FP16: Tolerance(0.005, 0.0015),
        Precision.INT8_FP16: Tolerance(0.12, 0.05),
    },
}


@dataclass(frozen=True)
class CheckConfig:
    """The parts of a check. The defaults are the full check.

    Attributes:
        models: names of the models, in order; the loop of loads uses the first whose engine of the last precision runs.
        precisions: precisions of the engines; the engine of the last one is shared by threads and loaded repeatedly.
        shapes: (batch, sequence) to time, each with and without CUDA graphs.
        warmup: untimed iterations of each shape and runner. `iterations` timed ones follow, which end after `max_seconds` per
            shape.
        max_rows: development rows of a model with real weights; None for all.
        random_rows: development rows of a model with random weights.
        batch_size: rows in a batch while scoring, at most the largest batch of `shapes`.
        threads: number of threads that share one engine.
        loads: number of times that an engine is loaded, run and closed.
        memory_growth_mib: growth of device memory that is allowed after the first ten loads: CUDA allocates pages of 2 MiB.
        max_drop_points: points that an engine's score, times 100, may be below that of torch FP32.
    """

    models: tuple[str, ...] = ("minilm", "bert-base", "bert-large")
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.FP16, Precision.INT8_FP16)
    shapes: tuple[Shape, ...] = grid((1, 8, 32, 128), (128, 32))
    warmup: int = 10
    iterations: int = 100
    max_seconds: float = 30.0
    max_rows: int | None = None
    random_rows: int = 64
    batch_size: int = 32
    threads: int = 8
    loads: int = 100
    memory_growth_mib: float = 8.0
    max_drop_points: float = 1.0

    @property
    def profiles(self) -> tuple[ShapeProfile, ...]:
        """One optimization profile for each sequence length, tuned for batch 32 or the largest batch if that is smaller."""
        most = max(batch for batch, _ in self.shapes)
        return bucket_profiles(sorted({sequence for _, sequence in self.shapes}), min(32, most), most)

    @property
    def largest(self) -> Shape:
        """The largest batch and the longest sequence that the plans accept."""
        return largest(self.profiles)

    def timing(self, shape: Shape) -> TimingConfig:
        """Return the configuration that times one shape."""
        return TimingConfig((shape,), self.warmup, self.iterations, max_seconds=self.max_seconds)

    def __str__(self) -> str:
        """The parts, in one line."""
        shapes = ", ".join(f"{batch}x{sequence}" for batch, sequence in self.shapes)
        return (
            f"{', '.join(self.precisions)} engines of {', '.join(self.models)}: build, logits against torch, score of the "
            f"development set, latency at {shapes} with and without CUDA graph, {self.threads} threads over one engine, "
            f"{self.loads} loads"
        )


#: A check of a few minutes: only MiniLM, two shapes.
QUICK = CheckConfig(
    models=("minilm",), shapes=grid((1, 32), (128,)), iterations=50, max_seconds=10.0, max_rows=256, loads=20
)
