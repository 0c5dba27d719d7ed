"""A check of a GPU in two halves: `gpu-check --prepare` on any machine, `--prepared` within a budget on the GPU machine.

A `kit` is the input of the second half: files, and the steps in the order of their value. `prepare` makes it. `schedule` runs
each step in a separate process (`worker`), which does the `work` on a `machine`. `forecast` compares the linter's forecast with
the plan, and `page` shows the results. All modules except `prepare` need only numpy, tokenizers, TensorRT and cuda-python.
"""

__all__ = ["kit", "machine", "page", "prepare", "schedule"]
