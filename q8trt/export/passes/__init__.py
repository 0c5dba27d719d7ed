"""The passes over an exported graph, in their declared order.

A pass is a small function. It changes the model in place and returns the number of places that it changed. Passes that only
annotate, sort or name return 0.
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
    """One step. `run` changes a model in place and returns the number of places that it changed.

    `exact`: the outputs of the graph stay the same to the bit. Otherwise they may change by the rounding of a product, or of a
    sum in another order. `optional`: the pass runs only if the export names it.
    """

    run: Callable[[ir.Model], int]
    exact: bool = True
    optional: bool = False

    @property
    def name(self) -> str:
        """The name of the function. Reports and options use it."""
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
    """Run PASSES on `model`, in place. An optional pass runs only if `options` has its name. Return one report per pass."""
    chosen = [step for step in PASSES if not step.optional or step.name in options]
    return [PassReport(step.name, step.run(model)) for step in chosen]
