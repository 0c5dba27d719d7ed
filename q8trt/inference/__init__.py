"""Inference without torch: `Engine` opens an engine folder and answers texts, and `inference.files` scores files."""

from q8trt.inference.answers import THRESHOLD, Answer, LabelSet
from q8trt.inference.engine import Engine
from q8trt.inference.ranking import Ranked
from q8trt.inference.tagging import Span
from q8trt.tasks.spans import SpanAnswer

__all__ = [
    "THRESHOLD",
    "Answer",
    "Engine",
    "LabelSet",
    "Ranked",
    "Span",
    "SpanAnswer",
    "batching",
    "checks",
    "files",
    "ray_data",
    "text",
]
