"""What the linter forecast beside what was built, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

_TYPES = ("int8", "fp16", "fp32")


def engine_table(report: Mapping[str, Any]) -> Table:
    """The table of a manifest's `report`; a dash where something is not known.

    Args:
        report: "forecast" (of the linter), "engine" (`EngineReport`) and "build", as the manifest holds them.
    """
    forecast, engine, build = report["forecast"], report["engine"], report["build"]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    table.add_column("forecast\n(graph)", justify="right", no_wrap=True)
    table.add_column(f"engine\n({engine['source']})", justify="right", no_wrap=True)
    for key, title in (("gemms", "GEMMs in INT8"), ("bmms", "attention BMMs in INT8")):
        table.add_row(title, *(_of(each[f"int8_{key}"], each[key]) for each in (forecast, engine)))
    table.add_row("fused attentions", _text(forecast["fusable_attentions"]), _text(engine["fused_attentions"]))
    adds = _of(forecast["int8_residual_adds"], forecast["residual_adds"])
    table.add_row("residual adds in INT8", adds, _text(engine["int8_residual_adds"]))
    ops, layers = forecast["compute_ops_by_type"], engine["layers_by_precision"]
    table.add_row(
        "ops | layers in INT8, FP16, FP32",
        ", ".join(str(ops.get(each, 0)) for each in _TYPES),
        ", ".join(str(layers.get(each.upper(), 0)) for each in _TYPES) if layers else "-",
    )
    table.add_row("reformats", "", _text(engine["reformats"]))
    table.add_row(
        "weights", _mib(forecast["int8_weight_bytes"] + forecast["float_weight_bytes"]), _mib(engine["weights_bytes"])
    )
    table.add_row("activations", "", _mib(engine["activation_bytes"]))
    table.add_row("build time", "", f"{build['seconds']:.1f} s")
    peak = build["peak_memory_mib"]
    table.add_row("build memory, peak", "", "-" if peak is None else f"{peak:.0f} MiB")
    twice = build["built_twice"]
    if twice is not None:
        table.add_row("built twice", "", "the same" if twice["identical"] else "differs")
    return table


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _of(part: int | None, whole: int | None) -> str:
    return "-" if part is None or whole is None else f"{part} of {whole}"


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f} MiB"
