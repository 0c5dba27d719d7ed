"""From a file to a report: read, recognize, check, count."""

from __future__ import annotations

from pathlib import Path

from q8trt.lint import checks_counts, checks_model, checks_parser, checks_quantizers
from q8trt.lint.attention import judge
from q8trt.lint.blocks import assign_blocks
from q8trt.lint.context import Context
from q8trt.lint.describe import bmm_roles, describe, gemm_roles
from q8trt.lint.forecast import compute_ops, is_half, make_forecast
from q8trt.lint.graph import read_graph
from q8trt.lint.report import LEVELS, LintConfig, LintReport
from q8trt.lint.structure import find_structure

#: In the order in which a reader wants to know, within one level.
CHECKS = (
    checks_parser.check_ops,
    checks_parser.check_soundness,
    checks_parser.check_tensor_types,
    checks_quantizers.check_schemes,
    checks_counts.check_counts,
    checks_model.check_embeddings,
    checks_model.check_products,
    checks_model.check_attention,
    checks_model.check_residuals,
    checks_model.check_types,
    checks_quantizers.check_purpose,
    checks_quantizers.check_weights,
    checks_model.check_inputs,
    checks_model.check_recognition,
)


def check(path: str | Path, config: LintConfig) -> LintReport:
    """See `q8trt.lint.lint`."""
    graph = read_graph(path)
    found = find_structure(graph)
    names, where = assign_blocks(graph, found)
    types = compute_ops(graph, found)
    roles = gemm_roles(graph, found, where) | bmm_roles(found)
    context = Context(graph, found, where, roles, {}, types, is_half(types), config)
    for attention in found.attentions:
        context.verdicts[attention.softmax] = judge(graph, attention, context.sequence)
    for run in CHECKS:
        run(context)
    return LintReport(
        path=str(path),
        producer=graph.producer,
        opset=graph.opset,
        max_shapes=config.max_shapes,
        forecast=make_forecast(graph, found, types, context.verdicts, context.purposeless),
        blocks=describe(graph, found, names, where, context.verdicts),
        findings=sorted(context.findings, key=lambda finding: LEVELS.index(finding.level)),
    )
