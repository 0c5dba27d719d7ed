"""Runs: the folder that fine-tuning fills, its record and configuration, and the search for one."""
