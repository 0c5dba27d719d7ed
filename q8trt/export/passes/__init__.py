"""The passes over an exported graph, in their declared order.

A pass is a small function. It changes the model in place and returns the number of places that it changed. After an exact pass,
the results of the graph are the same to the bit. After any other pass, they may differ by the rounding of one product.
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
    """One step: `run` changes a model in place and returns the number of places that it changed.

    `exact`: outputs do not change by a bit. Otherwise they may change by the rounding of a product, or of a sum in another
    order. `optional`: the pass runs only if the export names it.
    """

    run: Callable[[ir.Model], int]
    exact: bool = True
    optional: bool = False

    @property
    def name(self) -> str:
        """The function's name, which reports and options use."""
        return self.run.__name__


#: The passes in order. Normal form comes first, because the others match it. Names come last.
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
