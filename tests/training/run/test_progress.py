import io

from rich.console import Console

from mmpeft.training.run import progress
from mmpeft.training.run.progress import ProgressDisplay


def show(monkeypatch, terminal: bool, shown: bool = True) -> str:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=160)
    with ProgressDisplay(40, 10, shown=shown, console=console) as display:
        display.step(20, 1, loss=0.12345, lr=3e-4)
        display.say("epoch 2  validation [accuracy] 0.9")
    return output.getvalue()


def test_plain_lines_without_a_terminal(monkeypatch) -> None:
    text = show(monkeypatch, terminal=False)
    for part in ("epoch 2  step 20/40", "loss 0.1235", "lr 3.00e-04", "it/s", "MiB", "s left", "[accuracy] 0.9"):
        assert part in text
    assert "\x1b" not in text


def test_a_bar_in_a_terminal(monkeypatch) -> None:
    text = show(monkeypatch, terminal=True)
    for part in ("epoch 2", "20/40", "loss 0.1235", "lr 3.00e-04", "it/s", "MiB", "\x1b"):
        assert part in text


def test_other_processes_are_silent(monkeypatch) -> None:
    assert show(monkeypatch, terminal=True, shown=False).strip() == ""
