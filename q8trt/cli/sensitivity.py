"""`calibrate.py --sensitivity`: the cost of quantizing each site alone, and the recipe that keeps a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from q8trt.cli.terminal import say, table_console
from q8trt.console.commands import command
from q8trt.console.options import options_of
from q8trt.runs.run import runs_dir_option

if TYPE_CHECKING:
    from q8trt.cli.calibrate import Options
    from q8trt.evaluation.sensitivity.analysis import Analysis


def show_sensitivity(analysis: Analysis, options: Options) -> int:
    """Print the costs, the files and the recipe; returns the exit code."""
    from q8trt.evaluation.sensitivity import placement_lines, print_sensitivity

    print_sensitivity(analysis.costs, table_console())
    say(f"scores: {analysis.files[0]}\nplot:   {analysis.files[1]}")
    if analysis.placement is None or options.bound is None or options.bound.write_recipe is None:
        return 0
    say("\n".join(placement_lines(analysis.placement, analysis.costs.setup.metric)))
    config, recipe = analysis.config, options.bound.write_recipe
    model_words = ["--model_name_or_path", str(config.from_fp32), *options_of(config.data)]
    say(f"recipe: {recipe}")
    words = ["--recipe", recipe, *model_words, *runs_dir_option(options.runs_dir)]
    say(f"next: {command('calibrate', *words)}")
    return 0
