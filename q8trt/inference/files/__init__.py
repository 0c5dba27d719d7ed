"""Offline scoring: a file of rows through an `Engine` to a file of answers, of any size and resumable."""

from q8trt.inference.files.config import ScoringConfig
from q8trt.inference.files.job import JobProgress, Summary, score_file

__all__ = ["JobProgress", "ScoringConfig", "Summary", "score_file"]
