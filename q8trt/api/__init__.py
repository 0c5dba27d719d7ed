"""The Python API: each step from a checkpoint to a measured engine as a function. The commands call these functions.

    run = q8trt.finetune(task="STS-B", model_name_or_path="minilm", data_dir="glue")
    engine_dir = q8trt.build_engine(run)
    report = q8trt.benchmark(engine_dir)
    engine = q8trt.Engine.load(engine_dir)

Keyword arguments have the names of the commands' options. `config` accepts a dataclass with these options instead. The functions
print nothing. Several functions have these parameters:

    runs_dir: folder for new runs, in which the newest run is also looked up.
    progress: True shows progress bars on stderr if it is a terminal; a function receives (description, done, total).
    on_message: function that receives each message about progress, such as `print`.
    command: the words of the command line, for the record of the run or the report; by default the call is recorded.

All functions raise:
    Q8TRTError: an error that the caller can fix, in one line; a `MissingPackageError` has the command that installs it.
"""

from q8trt.api.engines import benchmark, build_engine, lint_model, parity, predict
from q8trt.api.models import calibrate, finetune, quantize, sensitivity

__all__ = [
    "benchmark",
    "build_engine",
    "calibrate",
    "finetune",
    "lint_model",
    "parity",
    "predict",
    "quantize",
    "sensitivity",
]
