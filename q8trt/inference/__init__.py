"""What an app embeds: an engine folder that takes text and gives the task's answer. Needs no torch."""

from q8trt.inference.answers import Answer
from q8trt.inference.engine import Engine

__all__ = ["Answer", "Engine"]
