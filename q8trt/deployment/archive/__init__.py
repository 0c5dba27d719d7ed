"""An engine folder as one file and back: `pack`, `unpack`, and the model card that goes with it."""

from q8trt.deployment.archive.archive import CARD_FILE, SUFFIX, SUMS_FILE, Packed, pack, unpack

__all__ = ["CARD_FILE", "SUFFIX", "SUMS_FILE", "Packed", "pack", "unpack"]
