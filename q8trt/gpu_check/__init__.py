"""Everything that only a GPU can show, in one command: `q8trt gpu-check`.

`config` holds the options, `models` prepares the models, `bench` is the one place that touches the GPU (tests put the CPU
there), `checks` are the steps, `journal` records their results, `page` shows them, `run` is the whole check.
"""

__all__ = ["bench", "checks", "config", "journal", "models", "page", "run"]
