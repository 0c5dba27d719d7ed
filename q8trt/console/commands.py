"""Command lines that q8trt prints. Each works as printed, in the folder where the previous command was typed.

If q8trt is used as a library, the commands name the scripts of a checkout.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

#: Scripts of a checkout. Each runs one command.
_SCRIPTS = ("finetune.py", "calibrate.py", "build_engine.py", "benchmark.py")


def command(name: str, *arguments: str | Path) -> str:
    """Return a command line, quoted for a shell, that starts q8trt the way this process was started.

    Args:
        name: a command of `q8trt`, such as "build-engine".
        arguments: the words of its options.
    """
    return shlex.join([*_program(name), *map(str, arguments)])


def _program(name: str) -> list[str]:
    """Return the words before the arguments: a script of a checkout, the installed program, or the package."""
    typed, script = Path(sys.argv[0]), f"{name.replace('-', '_')}.py"
    if typed.name in _SCRIPTS:
        if script in _SCRIPTS:
            return [_python(), str(typed.with_name(script))]
        return ["q8trt", name] if shutil.which("q8trt") else [_python(), "-m", "q8trt", name]
    if typed.name == "__main__.py" and typed.parent.name == "q8trt":
        return [_python(), "-m", "q8trt", name]
    if typed.stem == "q8trt":
        on_path = shutil.which("q8trt")
        return ["q8trt" if on_path and Path(on_path).absolute() == typed.absolute() else str(typed), name]
    return ["python", script] if script in _SCRIPTS else ["q8trt", name]  # used as a library


def _python() -> str:
    """Return the command of the running interpreter: "python" if the shell finds it, else its path."""
    on_path, running = shutil.which("python"), Path(sys.executable)
    if on_path and Path(on_path).parent == running.parent:
        return "python"
    here = Path.cwd()
    return str(running.relative_to(here)) if running.is_relative_to(here) else str(running)
