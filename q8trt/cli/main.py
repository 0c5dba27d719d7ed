"""`q8trt COMMAND ...`, and the one place where errors become a line on stderr and an exit code.

Exit codes: 0 done; 1 a check failed (doctor, lint, parity, gpu-check, the gate of benchmark); 2 bad input, or something that
this machine lacks; 130 stopped by Ctrl-C; 143 stopped by SIGTERM, which stops a command as Ctrl-C does.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from q8trt import __version__
from q8trt.cli import interrupts, terminal
from q8trt.cli.failures import explain, was_interrupted
from q8trt.console.progress import is_main_process
from q8trt.console.quiet import quiet_libraries
from q8trt.console.signals import exit_code
from q8trt.errors import InterruptedRunError, Q8TRTError, nearest
from q8trt.hardware.packages import install_module

#: Command -> summary. The module is `q8trt.cli.<command>`, with "_" for "-".
COMMANDS = {
    "finetune": "fine-tune in FP32, calibrate, and fine-tune with quantizers",
    "calibrate": "quantize a fine-tuned FP32 checkpoint without training",
    "quantize": "quantize your own fine-tuned model, with or without labels, and build and compare its engines",
    "build-engine": "export the newest run to ONNX with Q/DQ and build its TensorRT engine",
    "benchmark": "measure the accuracy, latency and throughput of a run's engines",
    "parity": "compare a run's engines with the torch model, stage by stage and layer by layer",
    "lint": "forecast what TensorRT runs in INT8 and fuses in an ONNX file, and what prevents it",
    "predict": "score a file of rows with an engine",
    "pack": "write an engine folder as one archive with hashes and a model card",
    "unpack": "restore an engine folder from an archive of q8trt pack and verify every hash",
    "triton": "write a model repository for NVIDIA's Triton Inference Server",
    "runs": "list the runs of a folder and their engines, newest first, with scores",
    "info": "show the facts of a run, a checkpoint of a run, or an engine folder",
    "gpu-check": "build, check and time all kinds of engines on a machine with a GPU",
    "doctor": "report what this machine can do and which steps run on it",
}

#: torchrun ends all processes when one ends, so the others wait this long for the first to print the error and clean up.
_GRACE_SECONDS = 3


def command_module(name: str) -> Any:
    """Return the module of a command, which has a `PARSER` and a function `run`."""
    return importlib.import_module(f"q8trt.cli.{name.replace('-', '_')}")


def _usage() -> str:
    lines = "\n".join(f"  {name:13} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: q8trt COMMAND [options]\n\nINT8 BERT on NVIDIA TensorRT.\n\n"
        f"{lines}\n\nq8trt COMMAND --help shows the options of a command; q8trt --version the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `q8trt` with the arguments `argv` (default: those of the process) and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        return _answer("q8trt", lambda: print(_usage()))
    if argv[0] == "--version":
        return _answer("q8trt", lambda: print(f"q8trt {__version__}"))
    name = argv[0].replace("_", "-")
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _fail(
            "q8trt", f"error: unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}; expected one of {known}", 2
        )
    return run_command(name, argv[1:])


def run_command(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every error that a user can fix becomes one line on stderr.

    Args:
        name: a key of `COMMANDS`.
        argv: its arguments; default: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        _quiet()
        return int(command_module(name).run(arguments))

    return _answer(name.replace("-", "_"), run)


def _answer(prog: str, run: Callable[[], int | None]) -> int:
    """Call `run` and return the exit code; `prog` begins the line of an error."""
    terminal.open_streams()
    try:
        with interrupts.raised(), terminal.flushed_output():
            return run() or 0
    except InterruptedRunError as error:
        return _fail(prog, str(error), exit_code(error))
    except Q8TRTError as error:
        return _fail(prog, f"error: {error}", 2)
    except KeyboardInterrupt as error:
        return _stopped(prog, error)
    except BrokenPipeError:  # the reader (head, a pager) went away
        terminal.discard_output()
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "q8trt":
            raise
        if error.name.split(".")[0] in sys.stdlib_module_names:
            return _fail(prog, f"error: this Python lacks its own module {error.name}; install Python again", 2)
        return _fail(prog, f"error: {error.name} is not installed: {install_module(error.name)}", 2)
    except Exception as error:
        if was_interrupted(error):
            return _stopped(prog, error)
        message = explain(error)
        if message is None:
            raise
        return _fail(prog, f"error: {message}", 2)


def _stopped(prog: str, error: BaseException) -> int:
    """Report a command that a signal stopped, and return the exit code."""
    code = exit_code(error)
    return _fail(prog, f"stopped by {'Ctrl-C' if code == 130 else 'SIGTERM'}; nothing half-written was left", code)


def _fail(prog: str, message: str, code: int) -> int:
    terminal.discard_output()
    if is_main_process():
        terminal.fail(f"{prog}: {message}")
    else:
        time.sleep(_GRACE_SECONDS)
    return code


def _quiet() -> None:
    """Print q8trt's log messages on stderr, and hide warnings of libraries that users cannot act on."""
    log = logging.getLogger("q8trt")
    log.setLevel(logging.INFO)
    if not any(isinstance(each, terminal.StderrHandler) for each in log.handlers):
        log.addHandler(terminal.StderrHandler())
        log.propagate = False
    # q8trt's own error quotes what TensorRT logs.
    logging.getLogger("q8trt.tensorrt").setLevel(logging.CRITICAL)
    if not is_main_process():
        log.setLevel(logging.ERROR)
    quiet_libraries()


if __name__ == "__main__":
    sys.exit(main())
