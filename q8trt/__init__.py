"""q8trt takes a BERT checkpoint to an INT8 TensorRT engine and proves what it is worth."""

__version__ = "0.1.0"
