"""Locks that name their process: one at a time, none left behind, none kept by the dead."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mmpeft import locks
from mmpeft.locks import InUseError, locked, refuse_if_locked


def forked(act: Callable[[], object]) -> int:
    """Run an action in a process of its own; its exit code is 0, 3 if it is refused, and 1 on other errors."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except InUseError:
            code = 3
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """A process that holds the lock of ``tmp_path / "a"`` until it is killed."""

    def hold() -> None:
        with locked(tmp_path / "a", 0):
            (tmp_path / "held").touch()
            signal.pause()

    child = forked(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    yield child
    if psutil.pid_exists(child):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_is_a_file_beside_only_while_it_is_held(tmp_path: Path) -> None:
    with locked(tmp_path / "a", 0):
        (file,) = tmp_path.iterdir()
        assert file.name.startswith(f".a.lock.{socket.gethostname()}.{os.getpid()}.")
        with locked(tmp_path / "b", 0):
            pass
    assert not list(tmp_path.iterdir())


def test_a_living_process_is_named(tmp_path: Path, holder: int) -> None:
    said = rf"a' is being written by process {holder} on .*: if that is wrong, delete .*\.a\.lock\."
    with pytest.raises(InUseError, match=said), locked(tmp_path / "a", 0.05):
        pass
    with pytest.raises(InUseError, match=said):
        refuse_if_locked(tmp_path / "a")
    refuse_if_locked(tmp_path / "b")
    refuse_if_locked(tmp_path / "nowhere" / "a")


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path, holder: int, reaped: bool) -> None:
    os.kill(holder, signal.SIGKILL)
    while not reaped and psutil.Process(holder).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
    if reaped:
        os.waitpid(holder, 0)
    refuse_if_locked(tmp_path / "a")
    with locked(tmp_path / "a", 0):
        assert len(list(tmp_path.glob(".a.lock.*"))) == 1


def test_a_later_process_of_the_same_number_holds_nothing(tmp_path: Path) -> None:
    name = f".a.lock.{socket.gethostname()}.{os.getppid()}.{{}}.00000000"
    started = round(100 * (psutil.Process(os.getppid()).create_time() - psutil.boot_time()))
    (tmp_path / name.format(started - 500)).touch()
    with locked(tmp_path / "a", 0):
        pass
    (tmp_path / name.format(started)).touch()
    with pytest.raises(InUseError), locked(tmp_path / "a", 0):
        pass


def test_another_thread_waits(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "a", 0),
        pytest.raises(InUseError, match=f"process {os.getpid()}"),
        locked(tmp_path / "a", 0.02),
    ):
        pass
    with locked(tmp_path / "a", 0):
        pass


def test_another_machine_counts_as_gone_once_it_is_silent(tmp_path: Path) -> None:
    file = tmp_path / ".a.lock.node%2D7.12.3400.0123abcd"
    file.touch()
    with pytest.raises(InUseError, match="process 12 on node-7"), locked(tmp_path / "a", 0):
        pass
    os.utime(file, (0, time.time() - locks.SILENCE - 60))
    with locked(tmp_path / "a", 0):
        assert not file.exists()


def test_a_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with locked(tmp_path / "a", 0):
        (file,) = tmp_path.iterdir()
        os.utime(file, (0, 0))
        while file.stat().st_mtime == 0:
            time.sleep(0.005)


def test_of_many_that_come_at_once_all_have_their_turn_and_none_beside_another(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count_up() -> None:
        for _ in range(5):
            with locked(tmp_path / "a", 60):
                before = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(before + 1))

    children = [forked(count_up) for _ in range(4)]
    assert [exit_code(child) for child in children] == [0] * 4
    assert counter.read_text() == "20"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_of_two_that_come_at_once_and_stay_one_is_refused(tmp_path: Path) -> None:
    def stay() -> None:
        try:
            with locked(tmp_path / "a", 1.0):
                while not (tmp_path / "refused").exists():
                    time.sleep(0.005)
        except InUseError:
            (tmp_path / "refused").touch()
            raise

    assert sorted(exit_code(child) for child in [forked(stay), forked(stay)]) == [0, 3]
