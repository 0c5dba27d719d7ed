"""A check of a GPU in two halves: `gpu-check --prepare` on any machine, `--prepared` within a budget on the GPU machine.

A `kit` is the input of the second half: files and steps, the most valuable step first. `prepare` makes it. `schedule` runs each
step in a separate process (`worker`), which does the `work` on a `machine`. `forecast` compares the linter's forecast with
the plan, and `page` shows the results. The GPU machine needs only numpy, msgspec, tokenizers, TensorRT and cuda-python; jinja2
adds the page, and torch and CuPy add steps.
"""

__all__ = ["kit", "machine", "page", "prepare", "schedule"]
