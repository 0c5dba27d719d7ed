"""The time of torch in FP16, the reference of a prepared check."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from q8trt.engine.shapes import Shape, show
from q8trt.errors import BackendError
from q8trt.gpu_check.journal import Outcome
from q8trt.gpu_check.prepared.kit import EngineFile
from q8trt.runtime.timing.latency import spread


def time_torch(
    engine: EngineFile,
    shapes: Sequence[Shape],
    iterations: int,
    make_inputs: Callable[[int, int], Mapping[str, np.ndarray]],
    device: str,
) -> Outcome[None]:
    """Time one forward pass of a model of the engine's architecture with random weights, at each shape.

    On a GPU, the model is in FP16, the pass is a CUDA graph, and inputs stay on the device. On a CPU, it is called in FP32.

    Raises:
        BackendError: torch or transformers is not installed.
    """
    try:
        import torch

        from q8trt.gpu_check.random_models import random_model

        model = random_model(engine.model).to(device)
    except ImportError as error:
        raise BackendError(f"torch and transformers are needed for the reference: {error}") from error
    on_gpu = device != "cpu"
    model = model.half() if on_gpu else model
    rows = []
    with torch.inference_mode():
        for batch, sequence in shapes:
            arrays = make_inputs(batch, sequence)
            inputs = {name: torch.from_numpy(array).long().to(device) for name, array in arrays.items()}
            run = _captured(torch, model, inputs) if on_gpu else functools.partial(model, **inputs)
            times = []
            for _ in range(iterations):
                started = time.perf_counter()
                run()
                if on_gpu:
                    torch.cuda.synchronize()
                times.append(1000 * (time.perf_counter() - started))
            rows.append({"batch": batch, "sequence": sequence, **vars(spread(times))})
    kind = "FP16, CUDA graph" if on_gpu else "FP32, CPU"
    figure = ", ".join(f"{show((row['batch'], row['sequence']))} {row['median_ms']:.3g} ms" for row in rows)
    return Outcome(
        f"torch {torch.__version__} {kind}: {figure}", None, {"torch": str(torch.__version__), "shapes": rows}
    )


def _captured(torch: Any, model: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    """Return the replay of a CUDA graph of one pass ("CUDA Graphs" in torch's documentation)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(**inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(**inputs)
    replay: Callable[[], Any] = graph.replay
    return replay
