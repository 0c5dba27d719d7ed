"""The NVIDIA GPUs of this machine, as `nvidia-smi` tells them: no CUDA context is made."""

from __future__ import annotations

import csv
import os
import subprocess
from dataclasses import dataclass

_FIELDS = "uuid,name,compute_cap,memory.total,driver_version"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: "NVIDIA L40S".
        sm: compute capability, "8.9".
        memory_mib: memory in MiB; 0 where the driver does not tell.
        driver: the driver's version, "570.86.15".
    """

    name: str
    sm: str
    memory_mib: int
    driver: str


def gpus() -> list[Gpu]:
    """The GPUs that CUDA programs started here can use, CUDA_VISIBLE_DEVICES applied; [] without GPU or driver."""
    command = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = {}
    for row in csv.reader(answer.stdout.splitlines(), skipinitialspace=True):
        if len(row) == 5:
            uuid, name, sm, memory, driver = (field.strip() for field in row)
            found[uuid] = Gpu(name, sm, int(memory) if memory.isdigit() else 0, driver)
    return _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _visible(found: dict[str, Gpu], mask: str | None) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES: indices or UUID prefixes; the first one that names no GPU hides it and the rest."""
    cards = list(found.values())
    if mask is None:
        return cards
    chosen = []
    for item in (part.strip() for part in mask.split(",")):
        if item.isdigit() and int(item) < len(cards):
            chosen.append(cards[int(item)])
        elif item.startswith("GPU-") and (match := [gpu for uuid, gpu in found.items() if uuid.startswith(item)]):
            chosen.append(match[0])
        else:
            break
    return chosen
