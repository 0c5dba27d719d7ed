"""Everything that only a GPU can show, in one command: `q8trt gpu-check`.

`config` holds the options, `models` and `random_models` prepare the models, `bench` is the one place that touches the GPU (tests
put the CPU there), `checks` are the steps, `journal` records their results, `page` shows them, `run` is the whole check.
`prepared` is the check in two halves, for a GPU that is there for minutes.
"""

__all__ = ["bench", "checks", "config", "journal", "models", "page", "prepared", "random_models", "run"]
