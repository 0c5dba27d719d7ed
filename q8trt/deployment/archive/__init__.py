"""Archives of engine folders: `pack`, `unpack`, and the model card in an archive."""

from q8trt.deployment.archive.archive import CARD_FILE, SUFFIX, SUMS_FILE, Packed, pack, unpack

__all__ = ["CARD_FILE", "SUFFIX", "SUMS_FILE", "Packed", "pack", "unpack"]
