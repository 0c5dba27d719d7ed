"""What quantizing each site alone costs, and the recipe that keeps to a bound.

A recipe is put in and calibrated once. Then its quantizers are switched on one site at a time, and the logits of some
development rows are held against those of the same model with all quantizers off. A layer, a site name in all layers,
and everything are scored likewise. The mean squared difference of the logits ranks the sites: on a few hundred rows a
metric is too coarse for that, and may even rise by chance.
"""

from q8trt.evaluation.sensitivity.probe import Cost, Probe, choose_rows, probe_of
from q8trt.evaluation.sensitivity.report import print_sensitivity, write_result
from q8trt.evaluation.sensitivity.scoring import PARTIAL_FILE, RESULT_FILE, Part, Sensitivity, measure, parts
from q8trt.evaluation.sensitivity.search import Placement, fewest_off, meet, recipe_text, recipe_without

__all__ = [
    "PARTIAL_FILE",
    "RESULT_FILE",
    "Cost",
    "Part",
    "Placement",
    "Probe",
    "Sensitivity",
    "choose_rows",
    "fewest_off",
    "measure",
    "meet",
    "parts",
    "print_sensitivity",
    "probe_of",
    "recipe_text",
    "recipe_without",
    "write_result",
]
