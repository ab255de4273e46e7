import os
import signal

from mmpeft.training.interruption import Interrupted, Interruption


def test_a_signal_is_noted_and_its_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupted_exits_with_its_code() -> None:
    assert Interrupted(130).code == 130
    assert issubclass(Interrupted, SystemExit)
