"""The cost of quantizing each site alone, and the recipe within a bound.

A recipe is inserted and calibrated once. Then its quantizers are switched on one site at a time, and the logits of some
development rows are compared with those of the same model with all quantizers off. A layer, a site name in all layers, and all
sites together are scored in the same way. The mean squared difference of the logits ranks the sites, because a metric is too
coarse on a few hundred rows and may even rise by chance. The metric of rows without labels is the drift from the float model,
such as the cosine of embeddings.
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
