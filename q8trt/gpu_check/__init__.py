"""Everything that only a GPU can show, in one command: `q8trt gpu-check`.

`config` says what is done, `models` makes what it is done with, `bench` is the one place that touches the GPU (tests put the
CPU there), `checks` are the steps, `journal` keeps what came of each, `page` shows it.
"""
