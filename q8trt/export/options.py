"""The options of an export. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from q8trt.console.options import check_options, option
from q8trt.quantization.target import Target

#: torch's current exporter, and its predecessor.
EXPORTERS = ("dynamo", "torchscript")


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export to ONNX."""

    exporter: str = option("dynamo", "torch's exporter; both produce the same graph", choices=EXPORTERS)
    fuse_qkv: bool | None = option(
        None,
        "compute Q, K and V with one GEMM of three times the width: fewer layers and a smaller plan",
        unset="the target's",
    )

    def __post_init__(self) -> None:
        check_options(self)

    def for_target(self, target: Target) -> ExportOptions:
        """Return the options with the target's values for those that are None."""
        return self if self.fuse_qkv is not None else replace(self, fuse_qkv=target.fuse_qkv)

    @property
    def passes(self) -> frozenset[str]:
        """The names of the optional passes to run. `fuse_qkv` does not run if its option is None."""
        return frozenset({"fuse_qkv"} if self.fuse_qkv else ())
