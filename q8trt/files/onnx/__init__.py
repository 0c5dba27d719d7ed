"""Reading of untrusted ONNX files without the onnx package, and checks before a library opens them.

`messages` reads and writes the protobuf messages. `storage` checks that every tensor stores the bytes that its shape needs, and
that weights in other files are inside the model's folder. `size` limits the number of nodes.
"""

from q8trt.files.onnx.size import graphs_of
from q8trt.files.onnx.storage import check_file, check_model, load_external

__all__ = ["check_file", "check_model", "graphs_of", "load_external"]
