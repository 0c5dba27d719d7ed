"""The options of an export. Importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from q8trt.console.options import check_options, option

#: torch's exporter of today, and the one before it.
EXPORTERS = ("dynamo", "torchscript")


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export to ONNX."""

    exporter: str = option("dynamo", "exporter of torch; both give the same graph", choices=EXPORTERS)
    fuse_qkv: bool = option(
        False, "compute Q, K and V with one GEMM of three times the width: fewer layers and a smaller plan"
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def passes(self) -> frozenset[str]:
        """The optional passes to run."""
        return frozenset({"fuse_qkv"} if self.fuse_qkv else ())
