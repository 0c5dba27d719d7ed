"""Export: a torch model, quantized or not, to an ONNX file with Q/DQ."""
