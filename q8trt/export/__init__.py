"""Export of a torch model, quantized or not, to an ONNX file with Q/DQ.

`onnx` exports a model with `options`. `trace` makes the raw graph, with `positions` as constants. `passes` transform it into
the graph of the file, and `overflow` finds the values that FP16 cannot represent. `graph` has the functions that read and change
an `onnx_ir` graph, and `report` the facts for the manifest.
"""

__all__ = ["graph", "onnx", "options", "overflow", "passes", "report", "trace"]
