"""A check of a GPU in two halves: `q8trt gpu-check --prepare` on any machine, `--prepared` on the one with the GPU, in a budget.

`kit` is what the first leaves for the second: files, and the steps in the order of their value. `prepare` makes it. `schedule`
goes through the steps, each in a process of its own (`worker`), which does the `work` on a `machine`. `forecast` holds the
linter's forecast against the plan; `page` shows the results. All but `prepare` need numpy, tokenizers, TensorRT and cuda-python
alone.
"""

__all__ = ["kit", "machine", "page", "prepare", "schedule"]
