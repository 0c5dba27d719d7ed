"""Scores of every site, layer and site name. They are saved while they are computed, so a measurement can be continued."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import q8trt
from q8trt import files
from q8trt.console.progress import progress
from q8trt.errors import InterruptedRunError
from q8trt.evaluation.sensitivity.probe import Cost, Probe, choose_rows, probe_of
from q8trt.quantization.libraries import library
from q8trt.quantization.sites import Site
from q8trt.runs.config import FinetuneConfig
from q8trt.tasks.data import Features
from q8trt.training.finetuning import Inputs

FORMAT = 1
RESULT_FILE = "sensitivity.json"
#: File of the scores of an unfinished measurement.
PARTIAL_FILE = "sensitivity.partial.json"
#: Minimum seconds between two writes of the scores.
SAVE_SECONDS = 5.0

#: Group ("everything", "names", "layers", "sites") -> key -> cost.
Scores = dict[str, dict[str, Cost]]


@dataclass(frozen=True)
class Part:
    """Sites that are quantized together to score them.

    Attributes:
        group: "everything", "names", "layers" or "sites".
        key: the name of the part in its group: "all", a site name, the number of a layer, a site key.
        sites: keys of the sites.
    """

    group: str
    key: str
    sites: tuple[str, ...]


def parts(sites: Sequence[Site]) -> tuple[Part, ...]:
    """Return the parts to score of the quantized sites of a model: all sites, each site name, each layer, and each site."""
    layers: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for site in sites:
        if site.layer is not None:
            layers.setdefault(str(site.layer), []).append(site.key)
            names.setdefault(site.name, []).append(site.key)
    return (
        Part("everything", "all", tuple(site.key for site in sites)),
        *(Part("names", name, tuple(keys)) for name, keys in names.items()),
        *(Part("layers", layer, tuple(keys)) for layer, keys in layers.items()),
        *(Part("sites", site.key, (site.key,)) for site in sites),
    )


@dataclass(frozen=True)
class Setup:
    """The rows, metric and recipe of a measurement. `recipe` is JSON-ready. Without labels, the metric is a drift from FP32.

    If the rows are windows of questions, `questions` is the number of questions; else None.
    """

    task: str
    is_sample: bool
    split: str
    rows: int
    rows_fingerprint: str
    metric: str
    calibration_samples: int
    seed: int
    quantizer: str
    recipe: dict[str, Any]
    has_labels: bool = True
    questions: int | None = None


@dataclass(frozen=True)
class Stored:
    """The part of a stored measurement that another one may continue."""

    fingerprint: str
    scores: Scores


@dataclass(frozen=True)
class Sensitivity:
    """The result of `measure`.

    Attributes:
        setup: rows, metric and recipe.
        sites: the quantized sites, in the order of computation.
        fingerprint: SHA-256 of everything that decides the scores.
        float_score_x100: the main metric of the float model on the rows, x100.
        scores: group -> key -> cost; see `Part`.
    """

    setup: Setup
    sites: tuple[Site, ...]
    fingerprint: str
    float_score_x100: float
    scores: Scores

    @property
    def ranking(self) -> tuple[str, ...]:
        """The keys of the sites, the most harmful first."""
        sites = self.scores["sites"]
        return tuple(sorted(sites, key=lambda key: -sites[key].logits_mse))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``sensitivity.json``."""
        scores = {group: {key: asdict(cost) for key, cost in costs.items()} for group, costs in self.scores.items()}
        head = {"format": FORMAT, **asdict(self.setup), "float_score_x100": self.float_score_x100}
        return {**head, "fingerprint": self.fingerprint, "scores": scores}


def measure(
    model: nn.Module, quantized: nn.Module, config: FinetuneConfig, inputs: Inputs, folder: Path, samples: int = 256
) -> Sensitivity:
    """Score every part of the recipe on rows of the first development split.

    Scores are saved in `folder` while they are computed. A later call with the same model, recipe and rows continues from them,
    or reuses those of a finished measurement.

    Args:
        model: the float model.
        quantized: a copy of it, quantized by the recipe of `config` and calibrated; its quantizers are switched.
        config: the recipe, and the seed that chooses the rows.
        inputs: tokenized rows.
        folder: the folder of the files; it is made if it does not exist.
        samples: maximum number of rows to score on.

    Raises:
        DataError: there are no development rows, rows lack the labels of their task, or a logit is not finite.
        InterruptedRunError: Ctrl-C. The finished scores are saved.
    """
    split, dev = next(iter(inputs.dev.items()))
    rows = choose_rows(dev, samples, config.training.seed)
    probe = probe_of(quantized, rows, config, inputs)
    task = config.data.resolved_task
    setup = Setup(
        task=task.name,
        is_sample=config.data.sample,
        split=split,
        rows=len(rows),
        rows_fingerprint=rows.fingerprint,
        metric=task.main_metric,
        calibration_samples=min(config.calibration_samples, len(inputs.train)),
        seed=config.training.seed,
        quantizer=config.quantizer,
        recipe=config.recipe.to_dict(),
        has_labels=task.has_labels,
        questions=rows.question_count,
    )
    fingerprint = _fingerprint(model, config, inputs, rows)
    stored = _stored_scores(folder, fingerprint)
    begun = Sensitivity(setup, probe.sites, fingerprint, 100 * probe.float_score, stored)
    return replace(begun, scores=_score(probe, begun, folder))


def _fingerprint(model: nn.Module, config: FinetuneConfig, inputs: Inputs, rows: Features) -> str:
    """Return a hash of weights, recipe, calibration and rows, without calibrated ranges, whose last bits may vary."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    source = library(config.quantizer)
    calibration = (config.calibration_samples, config.training.seed, inputs.train.fingerprint)
    decides = (FORMAT, q8trt.__version__, config.recipe.to_dict(), config.data.max_seq_length)
    digest.update(json.dumps((*decides, source.name, source.version(), *calibration, rows.fingerprint)).encode())
    return digest.hexdigest()


def _stored_scores(folder: Path, fingerprint: str) -> Scores:
    """Return the scores in `folder` of a measurement with the same fingerprint; {} if there are none."""
    for name in (PARTIAL_FILE, RESULT_FILE):
        try:
            stored = files.decode(Stored, files.read_json(folder / name), partial=True)
        except (OSError, ValueError):  # missing, or not readable: everything is scored again
            continue
        if stored.fingerprint == fingerprint:
            return stored.scores
    return {}


def _score(probe: Probe, begun: Sensitivity, folder: Path) -> Scores:
    """Return the scores of all parts; only those that `begun` lacks are computed."""
    all_parts, scores = parts(probe.sites), begun.scores
    left = [part for part in all_parts if part.key not in scores.get(part.group, {})]
    saved = time.monotonic()
    with progress("Scoring sites", len(all_parts)) as advance:
        advance(len(all_parts) - len(left))
        try:
            for part in sorted(left, key=lambda part: probe.start(part.sites)):
                scores.setdefault(part.group, {})[part.key] = probe.cost(part.sites)
                advance(1)
                if time.monotonic() - saved > SAVE_SECONDS:
                    files.write_json(folder / PARTIAL_FILE, begun.to_dict())
                    saved = time.monotonic()
        except KeyboardInterrupt:
            files.write_json(folder / PARTIAL_FILE, begun.to_dict())
            raise InterruptedRunError(
                f"stopped after {sum(map(len, scores.values()))} of {len(all_parts)} scores, which are saved; run the same "
                "command again to continue"
            ) from None
    return {
        group: {part.key: scores[group][part.key] for part in all_parts if part.group == group}
        for group in ("everything", "names", "layers", "sites")
    }
