"""Callbacks of a `transformers.Trainer`: step times, the log, signals, the best checkpoint, and the start of quantization."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import transformers
from torch import nn

from q8trt.console import signals
from q8trt.console.progress import display, progress
from q8trt.quantization.insertion import model_quantizers


class StepTimer(transformers.TrainerCallback):
    """A timer of optimizer steps, without evaluations and checkpoints. The first three steps are warm-up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the timer."""
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the timer when the GPU is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)

    def of_interest(self) -> list[float]:
        """Return the seconds of the steps after the warm-up, or of all steps if there are no others."""
        return self.seconds[3:] or self.seconds


class TrainingLog(transformers.TrainerCallback):
    """A progress bar of a stage, and a line on stderr for each log entry."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._stack = contextlib.ExitStack()
        self._advance: Callable[[int], None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the progress bar."""
        if state.is_world_process_zero:
            shown = progress(self.description, state.max_steps, state.global_step)
            self._advance = self._stack.enter_context(shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the progress bar by a step."""
        if self._advance is not None:
            self._advance(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the logged figures."""
        unwanted = ("epoch", "runtime", "per_second", "total_flos", "time", "train_loss")
        shown = {
            name.removeprefix("eval_"): value
            for name, value in (logs or {}).items()
            if isinstance(value, float) and not any(part in name for part in unwanted)
        }
        if self._advance is not None and display() is True and shown:
            kind = "dev  " if any(name.startswith("eval_") for name in logs or {}) else "train"
            figures = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            line = f"  {self.description} {kind} step {state.global_step}/{state.max_steps}  {figures}"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stop the progress bar."""
        self._stack.close()


class StopOnInterrupt(transformers.TrainerCallback):
    """A handler of Ctrl-C and SIGTERM: the first saves a checkpoint after the step and stops, the second stops at once.

    Under torchrun, all processes stop at the same step, even if only one of them received the signal. Later signals are ignored,
    because torchrun forwards signals that the processes already received.

    Attributes:
        interrupt: the exception for the signal, once all processes stop; None until then.
    """

    def __init__(self) -> None:
        self.interrupt: KeyboardInterrupt | None = None
        self._stack = contextlib.ExitStack()
        self._received = 0

    @property
    def requested(self) -> bool:
        """True if training stops because of a signal."""
        return self.interrupt is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received = number
        elif os.environ.get("WORLD_SIZE", "1") == "1":
            raise signals.interrupt(number)

    def __enter__(self) -> StopOnInterrupt:
        self._stack.enter_context(signals.handled(self._handle))
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._stack.close()
        if self._received and not self.requested and kind is None:  # the signal came after training
            signal.raise_signal(self._received)

    def _stop(self, args: Any, control: Any) -> None:
        self._agree(args.device)
        if self.requested:
            control.should_save = True
            control.should_training_stop = True
            # With a limit of 1, the Trainer would finally delete all checkpoints but the best, also the one to continue from.
            args.save_total_limit = None

    def _agree(self, device: torch.device) -> None:
        """Stop if a signal reached any process. Processes exchange gradients in every step, so none may stop alone.

        A signal that arrives during the exchange counts in the next step; otherwise this process would stop alone.
        """
        number = self._received
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            highest = torch.tensor(number, device=device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            number = int(highest.item())
        if number and self.interrupt is None:
            self.interrupt = signals.interrupt(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after a signal."""
        self._stop(args, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop before the next step after a signal during an evaluation."""
        self._stop(args, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Agree on a signal that came after the last step."""
        self._agree(args.device)


class KeepBest(transformers.TrainerCallback):
    """A callback that saves a checkpoint at each new best evaluation, in addition to those of `save_steps`."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Save a checkpoint if the metric is the best so far."""
        value = (metrics or {}).get(f"eval_{args.metric_for_best_model}")
        best = state.best_metric
        if value is not None and (best is None or (value > best if args.greater_is_better else value < best)):
            control.should_save = True


class DelayedQuantization(transformers.TrainerCallback):
    """A callback that trains the first steps of a quantized model in floating point.

    Evaluations and checkpoints always use the quantizers; otherwise the best checkpoint could be that of a float model. The
    weights change in floating point, so all ranges are measured again each time the quantizers are switched on. The state
    depends only on the number of the step, so a resumed training does the same.

    Args:
        model: the quantized model.
        start_step: number of steps before the quantizers stay on.
        calibrate: function that measures every range of `model` again, in place.
    """

    def __init__(self, model: nn.Module, start_step: int, calibrate: Callable[[], object]) -> None:
        self.quantizers = model_quantizers(model).values()
        self.start_step = start_step
        self.calibrate = calibrate
        self._calibrated_at: int | None = None

    def _switch(self, on: bool) -> None:
        # Not disable(): a disabled quantizer is skipped, but a quantizer with a moving average must still see its input.
        for quantizer in self.quantizers:
            if on:
                quantizer.enable_quant()
            else:
                quantizer.disable_quant()

    def _quantize(self, step: int) -> None:
        if self._calibrated_at != step:
            self.calibrate()
            self._calibrated_at = step
        self._switch(True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch the quantizers off before `start_step`, and on at `start_step` in a run that was resumed there."""
        if state.global_step < self.start_step:
            self._switch(False)
        elif state.global_step == self.start_step:
            self._quantize(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch the quantizers on at `start_step`, and before it for an evaluation or a checkpoint."""
        wanted = control.should_evaluate or control.should_save  # also true at the last step
        if state.global_step == self.start_step or (state.global_step < self.start_step and wanted):
            self._quantize(state.global_step)
