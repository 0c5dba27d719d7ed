"""The steps from a file to a report: read, recognize, check, count."""

from __future__ import annotations

from pathlib import Path

from q8trt.lint.attention import judge
from q8trt.lint.blocks import assign_blocks
from q8trt.lint.checks import counts, model, parser, quantizers
from q8trt.lint.context import Context
from q8trt.lint.describe import describe, roles_of
from q8trt.lint.forecast import compute_ops, is_half, make_forecast
from q8trt.lint.graph import read_graph
from q8trt.lint.report import LintConfig, LintReport, Place, Site
from q8trt.lint.rules import LEVELS
from q8trt.lint.sites import forecast_of_sites
from q8trt.lint.structure import find_structure

#: The checks, in the order in which their findings are listed within a level.
CHECKS = (
    parser.check_ops,
    parser.check_soundness,
    parser.check_tensor_types,
    quantizers.check_schemes,
    counts.check_counts,
    model.check_embeddings,
    model.check_products,
    model.check_attention,
    model.check_residuals,
    model.check_types,
    quantizers.check_purpose,
    quantizers.check_weights,
    model.check_inputs,
    model.check_recognition,
)


def check(path: str | Path, config: LintConfig) -> LintReport:
    """Judge an ONNX file; see `q8trt.lint.lint`."""
    context, places = _context(path, config)
    for run in CHECKS:
        run(context)
    graph = context.graph
    return LintReport(
        path=str(path),
        producer=graph.source.producer,
        opset=graph.source.opset,
        max_shapes=config.max_shapes,
        forecast=make_forecast(context),
        blocks=describe(context, places),
        findings=sorted(context.findings, key=lambda finding: LEVELS.index(finding.level)),
    )


def sites(path: str | Path, config: LintConfig) -> tuple[Site, ...]:
    """Return the parts of a file with their forecasts; see `q8trt.lint.forecast_sites`."""
    return tuple(forecast_of_sites(_context(path, config)[0]))


def _context(path: str | Path, config: LintConfig) -> tuple[Context, list[Place]]:
    """Read a file and recognize its parts. Return the context of the checks and the places of the blocks."""
    graph = read_graph(path)
    parts = find_structure(graph)
    places, block_of = assign_blocks(graph, parts)
    types = compute_ops(graph, parts)
    roles = roles_of(graph, parts, block_of)
    context = Context(graph, parts, block_of, roles, {}, types, is_half(types), config)
    for attention in parts.attentions:
        context.verdicts[attention.softmax] = judge(graph, attention, context.sequence)
    return context, places
