"""Offline scoring: a resumable job that reads a file of rows of any size and writes a file of answers."""

from q8trt.inference.files.config import ScoringConfig
from q8trt.inference.files.job import JobProgress, Summary, score_file

__all__ = ["JobProgress", "ScoringConfig", "Summary", "score_file"]
