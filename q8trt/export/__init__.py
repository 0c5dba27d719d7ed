"""Export of a torch model, quantized or not, to an ONNX file with Q/DQ.

`onnx` exports, with the `options` of a build; `trace` makes the raw graph, `passes` turn it into the file, `overflow` finds
what FP16 cannot hold, `graph` is what passes and others need to read and change an `onnx_ir` graph.
"""

__all__ = ["graph", "onnx", "options", "overflow", "passes", "report", "trace"]
