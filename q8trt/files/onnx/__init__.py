"""Untrusted ONNX files: they are read without the onnx package, and checked before a library opens them.

`messages` reads and writes the protobuf messages. `storage` checks that every tensor stores as many bytes as it claims, and
that weights in other files stay inside the model's folder; `size` bounds the nodes.
"""

from q8trt.files.onnx.size import graphs_of
from q8trt.files.onnx.storage import check_file, check_model, load_external

__all__ = ["check_file", "check_model", "graphs_of", "load_external"]
