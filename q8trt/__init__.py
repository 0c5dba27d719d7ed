"""q8trt takes a BERT checkpoint to an INT8 TensorRT engine and proves what it is worth.

An app needs three lines, and of the installed packages numpy, tokenizers, msgspec and one backend::

    from q8trt import Engine

    engine = Engine.load("runs/sts-b/engine")
    engine.predict([("A plane is taking off.", "An air plane is taking off.")])
"""

from __future__ import annotations

from q8trt.errors import (
    ArrayError,
    BackendError,
    ClosedError,
    ConfigError,
    EngineError,
    InputError,
    PairError,
    Q8TRTError,
)

TYPE_CHECKING = False  # the module typing takes longer to import than all that is here
if TYPE_CHECKING:
    from typing import Any

    from q8trt.inference import Answer, Engine

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "ArrayError",
    "BackendError",
    "ClosedError",
    "ConfigError",
    "Engine",
    "EngineError",
    "InputError",
    "PairError",
    "Q8TRTError",
]


def __getattr__(name: str) -> Any:
    """`Engine` and `Answer` when they are first asked for: the commands start without them."""
    if name in ("Answer", "Engine"):
        from q8trt import inference as app

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
