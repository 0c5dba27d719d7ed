"""The command `q8trt gpu-check`, which checks everything that needs a GPU.

`config` has the options, and `models` and `random_models` prepare the models. Only `bench` uses the GPU; tests replace it by
the CPU. `checks` has the steps, `journal` records their results, `page` shows them, and `run` is the whole check. `prepared` is
the check in two halves, for a GPU that is available for minutes only.
"""

__all__ = ["bench", "checks", "config", "journal", "models", "page", "prepared", "random_models", "run"]
