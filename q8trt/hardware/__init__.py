"""What this machine has: GPUs, installed packages, network reach, and the provenance of a result."""
