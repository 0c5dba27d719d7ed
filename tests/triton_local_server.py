"""The `tritonserver` of the pip package nvidia-pytriton on loopback, without a container or a GPU.

    python tests/triton_local_server.py MODEL_REPOSITORY [--environment .venv-triton]

That server has the Python backend alone, which is what ``q8trt triton --backend python`` writes for. The package's own wrapper
is not used: it serves Python functions, not model repositories. The environment (`make triton`) is one of its own, for the
package wants NumPy 1; it also holds tokenizers and onnxruntime, which the models import.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from q8trt.errors import BackendError

ENVIRONMENT = ".venv-triton"
_INSTALL = "install it with `make triton`"
_SECONDS_TO_STOP = 20


@dataclass(frozen=True)
class Address:
    """The addresses of a server, "127.0.0.1:PORT" for each protocol, and the file of its log."""

    http: str
    grpc: str
    metrics: str
    log: Path


@dataclass(frozen=True)
class Installation:
    """An environment that holds nvidia-pytriton. `find_installation` makes it."""

    environment: Path
    package: Path
    python_version: str

    @property
    def server(self) -> Path:
        """The server's program."""
        return self.package / "tritonserver" / "bin" / "tritonserver"

    @property
    def libraries(self) -> Path:
        """The folder of shared libraries that wheels carry."""
        return self.package.parent / "nvidia_pytriton.libs"

    @property
    def stub(self) -> Path:
        """The process that runs Python models, of the environment's own Python version."""
        return (
            self.package / "tritonserver" / "python_backend_stubs" / self.python_version / "triton_python_backend_stub"
        )


def find_installation(environment: str | Path = ENVIRONMENT) -> Installation:
    """The server in a virtual environment.

    Raises:
        BackendError: there is none, or none for its Python version.
    """
    environment = Path(environment).absolute()
    packages = sorted(environment.glob("lib/python3.*/site-packages/pytriton"))
    if not packages:
        raise BackendError(f"{environment} holds no nvidia-pytriton, whose tritonserver this starts; {_INSTALL}")
    package = packages[-1]
    found = Installation(environment, package, package.parents[1].name.removeprefix("python"))
    for path in (found.server, found.stub):
        if not path.is_file():
            raise BackendError(f"nvidia-pytriton in {environment} has no {path.relative_to(package)}; {_INSTALL}")
    return found


@contextlib.contextmanager
def serve(
    repository: str | Path, environment: str | Path = ENVIRONMENT, timeout: float = 120, ports: tuple[int, ...] = ()
) -> Iterator[Address]:
    """Start the server, wait until all models are ready, and stop it in the end.

    Args:
        repository: a model repository whose models need the Python backend only.
        environment: the virtual environment that holds nvidia-pytriton, tokenizers and onnxruntime.
        timeout: seconds until the models must be ready.
        ports: of HTTP, gRPC and metrics; default: free ones.

    Raises:
        BackendError: there is no server, it stopped, or it was not ready in time; with the errors that it logged.
    """
    installation = find_installation(environment)
    ports = ports or free_ports(3)
    with tempfile.TemporaryDirectory(prefix="q8trt-triton-") as folder:
        backends = Path(folder) / "backends" / "python"
        backends.mkdir(parents=True)
        for path in (*(installation.package / "tritonserver" / "backends" / "python").iterdir(), installation.stub):
            (backends / path.name).symlink_to(path)
        log = Path(folder) / "server.log"
        command = [
            str(installation.server),
            f"--model-repository={repository}",
            f"--backend-directory={backends.parent}",
        ]
        for service, port in zip(("http", "grpc", "metrics"), ports, strict=True):
            command += [f"--{service}-address=127.0.0.1", f"--{service}-port={port}"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=_environment(installation), start_new_session=True
            )
        try:
            _wait_until_ready(process, ports[0], timeout, log)
            http, grpc, metrics = (f"127.0.0.1:{port}" for port in ports)
            yield Address(http, grpc, metrics, log)
        finally:
            _stop(process)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of loopback that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)


def _environment(installation: Installation) -> dict[str, str]:
    """The stub embeds the first `python3` of PATH, and with it that environment's packages."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    paths = {"PATH": str(installation.environment / "bin"), "LD_LIBRARY_PATH": str(installation.libraries)}
    joined = {name: os.pathsep.join(filter(None, (path, inherited.get(name)))) for name, path in paths.items()}
    return inherited | joined | {"VIRTUAL_ENV": str(installation.environment)}


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, timeout: float, log: Path) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BackendError(f"tritonserver stopped with exit code {process.returncode}: {_errors(log)}")
        connection = HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise BackendError(f"tritonserver was not ready within {timeout:.0f} s: {_errors(log)}")


def _errors(log: Path) -> str:
    """Return the errors in the server's log in one line, without the stack of a Python model."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if re.match(r"E\d{4} ", line)]
    told = [line.partition("] ")[2].strip('"').partition(r"\n\nAt:")[0] for line in lines]
    # Without a driver the server says so as an error, and goes on.
    return "; ".join(dict.fromkeys(each for each in told if "CudaDriverHelper" not in each)) or "it logged no error"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes of its models, which share its session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_STOP)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/triton_local_server.py", description=__doc__.partition("\n")[0])
    parser.add_argument("repository", metavar="MODEL_REPOSITORY", help="what `q8trt triton --backend python` wrote")
    parser.add_argument("--environment", default=ENVIRONMENT, metavar="DIR", help=f"default: {ENVIRONMENT}")
    parser.add_argument(
        "--ports", type=int, nargs=3, default=(8000, 8001, 8002), metavar="N", help="HTTP, gRPC, metrics"
    )
    args: Any = parser.parse_args(argv)
    # What ends this process must end the server, which has a session of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with serve(args.repository, args.environment, ports=tuple(args.ports)) as at:
            print(f"HTTP {at.http}, gRPC {at.grpc}, metrics {at.metrics}; Ctrl-C stops the server", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except BackendError as error:
        print(f"triton_local_server: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
