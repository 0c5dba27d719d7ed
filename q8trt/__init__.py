"""q8trt turns a BERT checkpoint into an INT8 TensorRT engine and measures the result.

    run = q8trt.finetune(task="STS-B", model_name_or_path="minilm", data_dir="glue")
    engine_dir = q8trt.build_engine(run)
    report = q8trt.benchmark(engine_dir)

An app needs two lines. It needs only the packages numpy, tokenizers, msgspec and those of one backend::

    engine = q8trt.Engine.load("runs/NAME/engine")
    engine.predict([("A plane is taking off.", "An air plane is taking off.")])

docs/guides/python.md describes the functions. The library prints nothing and logs to the logger "q8trt".
"""

from __future__ import annotations

from q8trt.errors import (
    ArrayError,
    BackendError,
    ClosedError,
    ConfigError,
    EngineError,
    InputError,
    MissingPackageError,
    PairError,
    Q8TRTError,
)

TYPE_CHECKING = False  # importing typing takes longer than importing this package
if TYPE_CHECKING:
    from typing import Any

    from q8trt.api import (
        benchmark,
        build_engine,
        calibrate,
        finetune,
        lint_model,
        parity,
        predict,
        quantize,
        sensitivity,
    )
    from q8trt.deployment.archive import pack, unpack
    from q8trt.inference import Answer, Engine, LabelSet, Ranked, Span, SpanAnswer
    from q8trt.quantization.precision import Precision
    from q8trt.runs.run import Run

__version__ = "0.1.0"
__all__ = [
    "Answer", "ArrayError", "BackendError", "ClosedError", "ConfigError", "Engine", "EngineError", "InputError",
    "LabelSet", "MissingPackageError", "PairError", "Precision", "Q8TRTError", "Ranked", "Run", "Span", "SpanAnswer", "benchmark",
    "build_engine", "calibrate", "finetune", "lint_model", "pack", "parity", "predict", "quantize", "sensitivity", "unpack",
]  # fmt: skip
#: Name -> its module, which is imported when the name is first used, so that commands start quickly. Others are in `q8trt.api`.
_MODULES = {
    **dict.fromkeys(("Answer", "Engine", "LabelSet", "Ranked", "Span", "SpanAnswer"), "q8trt.inference"),
    **dict.fromkeys(("pack", "unpack"), "q8trt.deployment.archive"),
    "Precision": "q8trt.quantization.precision",
    "Run": "q8trt.runs.run",
}


def __getattr__(name: str) -> Any:
    """Import and return a name of `__all__`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib
    import logging

    log = logging.getLogger(__name__)
    if not log.handlers:  # without a handler, logging prints warnings
        log.addHandler(logging.NullHandler())
    return getattr(importlib.import_module(_MODULES.get(name, "q8trt.api")), name)
