"""The passes over an exported graph, in their declared order.

A pass is a small function: it changes the model in place and returns how many places it changed. What the graph computes
stays the same: to the bit where the pass is declared exact, to the rounding of one product otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q8trt.export.passes import attention, normal, quantize, smoothing
from q8trt.export.report import PassReport

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Pass:
    """One step: `run` changes a model in place and answers how many places it changed.

    `exact`: outputs do not change by a bit; else by the rounding of a product, or of a sum that a kernel adds in another
    order. `optional`: runs only where the export asks for it by name.
    """

    run: Callable[[ir.Model], int]
    exact: bool = True
    optional: bool = False

    @property
    def name(self) -> str:
        """The function's name, which reports and options use."""
        return self.run.__name__


#: In this order. Normal form first, because the others match it; names last.
PASSES: tuple[Pass, ...] = (
    Pass(normal.note_scopes),
    Pass(normal.lift_constants),
    Pass(normal.gemm_to_matmul, exact=False),
    Pass(quantize.fold_weights),
    Pass(normal.transpose_constants, exact=False),
    Pass(quantize.insert_qdq),
    Pass(quantize.read_shapes_before_quantization),
    Pass(normal.constants_last),
    Pass(normal.divisions_to_products),
    Pass(normal.merge_unsqueezes),
    Pass(normal.infer_shapes),
    Pass(normal.fold_casts),
    Pass(normal.constant_reshapes),
    Pass(normal.dims_from_inputs),
    Pass(quantize.separate_weights),
    Pass(attention.fold_attention_scale, exact=False),
    Pass(attention.merge_key_transposes),
    Pass(smoothing.fold_branch_factors),
    Pass(smoothing.fold_layernorm_factors),
    Pass(quantize.share_quantizers),
    Pass(attention.fuse_qkv, optional=True),
    Pass(normal.order_and_name),
)


def run_passes(model: ir.Model, options: frozenset[str] = frozenset()) -> list[PassReport]:
    """Run PASSES, the optional ones only if `options` names them; the model is changed in place."""
    chosen = [step for step in PASSES if not step.optional or step.name in options]
    return [PassReport(step.name, step.run(model)) for step in chosen]
