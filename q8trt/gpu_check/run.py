"""One check of a GPU: the steps of all models, and the files of their results."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from q8trt.files import check_report, exclusive, scratch_folder
from q8trt.gpu_check.bench import Bench
from q8trt.gpu_check.checks import ModelCheck
from q8trt.gpu_check.config import CheckConfig
from q8trt.gpu_check.journal import Journal
from q8trt.gpu_check.models import Models
from q8trt.gpu_check.page import STEM, line, write
from q8trt.runs.run import Run


def check_gpu(
    bench: Bench,
    config: CheckConfig,
    run: Callable[[], Run],
    data_dir: str | None,
    folder: Path,
    provenance: dict[str, Any],
    on_message: Callable[[str], object],
) -> Journal:
    """Run all steps with each model, and write ``gpu-check.json`` and ``gpu-check.html`` after each step.

    A failed step is a result in the journal. Only Ctrl-C and a full disk stop the other steps. The engines need gigabytes in
    `folder` while their model is checked.

    Args:
        bench: builds and runs the engines.
        config: the parts of the check.
        run: see `Models`.
        data_dir: the GLUE folder; None for the built-in sample.
        folder: folder of the two files.
        provenance: of the reports.
        on_message: called with a line before the first step, and one after each.

    Raises:
        ConfigError: the folder has files of these names that are not results of a check.
        BusyError: another check writes there.
    """
    with exclusive(folder):
        page = folder / f"{STEM}.html"
        check_report(folder / f"{STEM}.json", [page], keys=("schema", "checks"), option="--output_dir")

        def keep(journal: Journal) -> None:
            write(folder, journal, bench, config, provenance)
            if not journal.finished:
                on_message(line(journal.checks[-1]))

        on_message(f"{bench.title} on {bench.device}: {config}")
        with scratch_folder(folder / "engines") as work:
            journal = Journal(keep, hidden=f"{work}/")
            loads_done = False
            for name, make in Models(run, data_dir, config).makers.items():
                with TemporaryDirectory(dir=work, prefix=f"{name}-") as engines, ExitStack() as stack:
                    check = ModelCheck(bench, name, config, journal, Path(engines), stack)
                    loads_done = check.run(make, loads_done, provenance)
            journal.finish()
    return journal


def slug(device: str) -> str:
    """Return a device's name as part of a file name: ``"NVIDIA H100 80GB HBM3"`` -> ``"nvidia-h100-80gb-hbm3"``."""
    return re.sub(r"[^a-z0-9]+", "-", device.casefold()).strip("-")
