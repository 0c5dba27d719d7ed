"""Token arrays that torch or CuPy hold on the GPU go into the engine where they are; without a GPU, torch's on the host do.

    python examples/torch_and_cupy.py runs/NAME/engine "A plane is taking off." "An air plane is taking off."

Arrays on the GPU are int32 and C-contiguous. The engine's stream waits for the work that makes them (by DLPack), so
nothing needs to be synchronized.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from q8trt import Engine


def token_arrays(engine: Engine, text: str, other: str | None = None) -> dict[str, np.ndarray]:
    """One example as int32 arrays (1, tokens), by the names of the model's inputs."""
    tokenizer = Tokenizer.from_file(str(engine.folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(engine.limits.max_length)
    encoded = tokenizer.encode(text, other)
    rows = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    return {name: np.array([rows[name]], np.int32) for name in engine.manifest.inputs}


def main() -> None:
    """Logits of the same example, from the host, from torch and from CuPy."""
    folder, *texts = sys.argv[1:]
    with Engine.load(Path(folder)) as engine:
        host = token_arrays(engine, *texts)
        print("NumPy", engine.run(host))

        place = "cpu" if engine.device == "cpu" else "cuda"
        tensors = {name: torch.from_numpy(array).to(place) for name, array in host.items()}
        print("torch", engine.run(tensors))

        if place == "cuda" and importlib.util.find_spec("cupy"):
            import cupy

            with cupy.cuda.Stream(non_blocking=True):
                arrays = {name: cupy.asarray(array) for name, array in host.items()}
                print("CuPy ", engine.run(arrays))


if __name__ == "__main__":
    main()
