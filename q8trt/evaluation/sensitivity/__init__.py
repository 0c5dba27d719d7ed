"""The cost of quantizing each site alone, and the recipe that keeps to a bound.

A recipe is inserted and calibrated once. Then its quantizers are switched on one site at a time, and the logits of some
development rows are compared with those of the same model with all quantizers off. A layer, a site name in all layers, and
everything are scored likewise. The mean squared difference of the logits ranks the sites: on a few hundred rows a metric is
too coarse for that, and may even rise by chance. Rows without labels do as well: their metric is the drift from the float
model, such as the cosine of embeddings.
"""

from q8trt.evaluation.sensitivity.probe import Cost, Probe, choose_rows, probe_of
from q8trt.evaluation.sensitivity.result import placement_lines, print_sensitivity, write_result
from q8trt.evaluation.sensitivity.scoring import PARTIAL_FILE, RESULT_FILE, Part, Sensitivity, Setup, measure, parts
from q8trt.evaluation.sensitivity.search import Placement, fewest_off, meet, recipe_text, recipe_without

__all__ = [
    "PARTIAL_FILE", "RESULT_FILE", "Cost", "Part", "Placement", "Probe", "Sensitivity", "Setup", "choose_rows", "fewest_off",
    "measure", "meet", "parts", "placement_lines", "print_sensitivity", "probe_of", "recipe_text", "recipe_without",
    "write_result",
]  # fmt: skip
