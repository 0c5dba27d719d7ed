"""Locks, and the temporary names of writers that were killed: real processes, and SIGKILL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE

from q8trt import files
from q8trt.errors import BusyError, ConfigError
from q8trt.files import locks

Start = Callable[[str, Path], "tuple[subprocess.Popen[str], str]"]
_PRELUDE = "import os, sys, time\nfrom pathlib import Path\nfrom q8trt import files\ntarget = Path(sys.argv[1])\n"
HOLD = f"{_PRELUDE}with files.exclusive(target):\n    print('ready', flush=True)\n    time.sleep(600)\n"
#: Holds the lock, and has a forked child that outlives it.
HOLD_AND_FORK = f"""{_PRELUDE}
with files.exclusive(target):
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # by now it has let go of the lock
        time.sleep(600)
        os._exit(0)
    time.sleep(600)
"""
HALF_FOLDER = f"""{_PRELUDE}
with files.atomic_folder(target) as folder:
    (folder / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""
HALF_FILE = f"""{_PRELUDE}
with files.atomic_file(target) as file:
    file.write_text("x")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code with a path as its argument; returns the process and the first line that it prints."""
    processes = []

    def run(code: str, path: Path) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout
        return process, process.stdout.readline().strip()

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=PATIENCE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_writer_is_told_who_holds_the_lock(tmp_path: Path, start: Start) -> None:
    holder, _ = start(HOLD, tmp_path / "run")
    line = (
        rf"{re.escape(str(tmp_path / 'run'))} is in use by process {holder.pid} \(.*\); wait until it ends, or stop it"
    )
    with pytest.raises(BusyError, match=line) as caught, files.exclusive(tmp_path / "run"):
        pass
    assert "\n" not in str(caught.value)
    with files.exclusive(tmp_path / "another"):
        pass


def test_a_killed_holder_blocks_nobody(tmp_path: Path, start: Start) -> None:
    kill(start(HOLD, tmp_path / "run")[0])
    assert names(tmp_path) == [".run.lock"]  # the file stays, the lock does not
    with files.exclusive(tmp_path / "run"):
        pass
    assert names(tmp_path) == []


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path, start: Start) -> None:
    """A DataLoader's workers may outlive a killed training by seconds."""
    holder, child = start(HOLD_AND_FORK, tmp_path / "run")
    with pytest.raises(BusyError, match=f"process {holder.pid} "), files.exclusive(tmp_path / "run"):
        pass
    kill(holder)
    try:
        with files.exclusive(tmp_path / "run"):
            os.kill(int(child), 0)  # it lives
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_links_to_one_target_share_a_lock(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(tmp_path / "run")
    for first, second in ((tmp_path / "run", link), (link, tmp_path / "elsewhere" / ".." / "run")):
        with files.exclusive(first), pytest.raises(BusyError, match=f"process {os.getpid()} "), files.exclusive(second):
            pass


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_lock_ends_with_its_block_and_leaves_no_file(tmp_path: Path, exception: type[BaseException]) -> None:
    target = tmp_path / "a" / "b" / "run"

    def fail() -> None:
        with files.exclusive(target):
            assert names(target.parent) == [".run.lock"]
            raise exception

    with pytest.raises(exception):
        fail()
    assert names(tmp_path) == []  # nor the folders that were made for it
    with files.exclusive(target):
        target.mkdir()
    assert names(target.parent) == ["run"]


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that ends removes its file: who opened it just before must not lock a file without a name."""
    path, try_lock, tries = locks.lock_path(tmp_path / "run"), locks.try_lock, []

    def lock_after_removal(handle: int) -> bool:
        if not tries:
            path.unlink()
        tries.append(handle)
        return try_lock(handle)

    monkeypatch.setattr(locks, "try_lock", lock_after_removal)
    with files.exclusive(tmp_path / "run"):
        assert len(tries) == 2
        assert path.is_file()


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 5000])
def test_a_note_that_cannot_be_read_still_gives_a_line(tmp_path: Path, note: bytes) -> None:
    with files.exclusive(tmp_path / "run"):
        locks.lock_path(tmp_path / "run").write_bytes(note)
        with (
            pytest.raises(BusyError, match="run is in use by another process; wait"),
            files.exclusive(tmp_path / "run"),
        ):
            pass


@pytest.mark.parametrize("text", ["precious", '{"pid": ' + "9" * 5000, "[" * 3000])
def test_a_file_with_the_name_of_the_lock_stays(tmp_path: Path, text: str) -> None:
    path = locks.lock_path(tmp_path / "run")
    path.write_text(text)
    with (
        pytest.raises(ConfigError, match=r"\.run\.lock is not a lock file of q8trt"),
        files.exclusive(tmp_path / "run"),
    ):
        pass
    assert path.read_text() == text


@pytest.mark.parametrize("target", ["precious", "nothing"])
def test_a_link_with_the_name_of_the_lock_stays(tmp_path: Path, target: str) -> None:
    (tmp_path / "precious").write_text("text")
    path = locks.lock_path(tmp_path / "run")
    path.symlink_to(target)
    with pytest.raises(ConfigError, match=r"\.run\.lock is a link"), files.exclusive(tmp_path / "run"):
        pass
    assert path.is_symlink()
    assert (tmp_path / "precious").read_text() == "text"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("code", [HALF_FOLDER, HALF_FILE], ids=["folder", "file"])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, start: Start, code: str) -> None:
    writer, _ = start(code, tmp_path / "out")
    assert files.remove_stale(tmp_path / "out") == []  # it lives, so its name stays
    assert len(names(tmp_path)) == 1
    kill(writer)
    assert len(names(tmp_path)) == 1
    files.write_text(tmp_path / "out", "whole")
    assert names(tmp_path) == ["out"]


def test_only_names_of_the_target_are_swept(tmp_path: Path) -> None:
    kept = [".other.abc.tmp", ".out.json.abc.tmp", ".out.tmp", "out.abc.tmp", ".out.abc.tmp.txt", ".[o]ut.abc.tmp"]
    for name in [*kept, ".out.abc.tmp"]:
        (tmp_path / name).touch()
    (tmp_path / ".out.link.tmp").symlink_to("nowhere")
    assert [path.name for path in files.remove_stale(tmp_path / "out")] == [".out.abc.tmp"]
    assert names(tmp_path) == sorted([*kept, ".out.link.tmp"])


def test_a_folder_whose_writer_died_between_two_renames_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".out.abc.old").mkdir()
    (tmp_path / ".out.abc.old" / "weights").touch()
    assert files.remove_stale(tmp_path / "out") == []
    assert names(tmp_path) == ["out"]
    (tmp_path / ".out.abc.old").mkdir()
    files.remove_stale(tmp_path / "out")
    assert (tmp_path / "out" / "weights").exists()
    assert names(tmp_path) == ["out"]


def test_a_sweep_takes_the_names_that_it_is_given(tmp_path: Path, start: Start) -> None:
    live, _ = start(HALF_FOLDER, tmp_path / "engine-live")
    for name in (".engine.abc.tmp", ".engine-ptq.abc.tmp", ".run.json.abc.tmp", ".notes.abc.tmp", "engine"):
        (tmp_path / name).mkdir()
    removed = files.sweep(tmp_path, ("engine*", "run.json"))
    assert {path.name for path in removed} == {".engine.abc.tmp", ".engine-ptq.abc.tmp", ".run.json.abc.tmp"}
    left = names(tmp_path)
    assert [name for name in left if "live" not in name] == [".notes.abc.tmp", "engine"]
    assert len(left) == 3
    kill(live)
    assert len(files.sweep(tmp_path, ("engine*",))) == 1
    assert files.sweep(tmp_path / "none", ("*",)) == []


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a network mount without locks a temporary name may be a live writer's."""
    monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / ".out.abc.tmp").touch()
    assert files.remove_stale(tmp_path / "out") == []
    with files.exclusive(tmp_path / "out"):
        files.write_text(tmp_path / "out", "text")
    assert names(tmp_path) == [".out.abc.tmp", "out"]


def test_a_scratch_folder_is_removed_and_so_is_a_killed_ones(tmp_path: Path, start: Start) -> None:
    with files.scratch_folder(tmp_path / "work") as folder:
        (folder / "plan").touch()
    assert names(tmp_path) == []
    kill(start(HALF_FOLDER.replace("atomic_folder", "scratch_folder"), tmp_path / "work")[0])
    assert len(names(tmp_path)) == 1
    with files.scratch_folder(tmp_path / "work"):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []


def test_ctrl_c_while_a_lock_is_taken_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(set[int]):
        def add(self, handle: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(locks, "_handles", Interrupted())
    with pytest.raises(KeyboardInterrupt), files.exclusive(tmp_path / "run"):
        pass
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that exists and takes no files")
def test_a_lock_that_cannot_be_made_names_the_target(tmp_path: Path) -> None:
    """In /proc a new file is answered as a folder that is missing: without a bound the lock was tried for ever."""
    (tmp_path / "file").touch()
    for target, reason in (
        (Path("/proc/o.csv"), "No such file"),
        (tmp_path / "file" / "o.csv", "File exists|Not a dir"),
    ):
        expected = rf"^{target} cannot be written: ({reason}).*; give a path in a folder that you may write to$"
        with pytest.raises(ConfigError, match=expected), files.exclusive(target):
            pass
