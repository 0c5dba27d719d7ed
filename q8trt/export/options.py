"""How a graph is written: plain data, which the command line's help is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from q8trt.errors import ConfigError

#: torch's exporter of today, and the one before it.
EXPORTERS = ("dynamo", "torchscript")


@dataclass(frozen=True)
class ExportOptions:
    """How a graph is written.

    Attributes:
        exporter: torch's exporter of today, "dynamo", or the one before it, "torchscript"; both give the same graph.
        fuse_qkv: one GEMM for Q, K and V.
    """

    exporter: str = field(
        default="dynamo", metadata={"help": "torch's exporter: dynamo or torchscript, the same graph"}
    )
    fuse_qkv: bool = field(
        default=False,
        metadata={"help": "one GEMM for Q, K and V, of three times the width: fewer layers and a smaller plan"},
    )

    def __post_init__(self) -> None:
        if self.exporter not in EXPORTERS:
            raise ConfigError(f"unknown --exporter {self.exporter!r}; known: {', '.join(EXPORTERS)}")

    @property
    def passes(self) -> frozenset[str]:
        """The optional passes that are asked for."""
        return frozenset({"fuse_qkv"} if self.fuse_qkv else ())
