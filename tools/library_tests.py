"""The model libraries' own tests, with every model that they build adapted.

    python tools/library_tests.py SUITE tests/test_models.py -k "forward and vit"

SUITE is a source tree of timm, diffusers or transformers whose tests fit the installed version; the rest is pytest's.
The tests run twice, plainly and with a LoRA grafted into each model at its first call. It starts at zero and the base
parameters keep their ``requires_grad``, so a test that passes plainly passes again, or the difference is printed.
What is to be expected is in docs/interoperability.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import nn

ROOT = Path(__file__).parents[1]
MODELS = ("transformers.modeling_utils.PreTrainedModel", "diffusers.models.modeling_utils.ModelMixin")
"""Classes of whole models; timm's are known by their pretrained_cfg."""
REPORT = "MMPEFT_LIBRARY_TESTS"
"""The variable that names the file to which a run writes its outcomes."""
outcomes: dict[str, tuple[str, str]] = {}
adapted: Counter[str] = Counter()
refused: dict[str, str] = {}


def main(suite: Path, arguments: list[str]) -> int:
    """Run the tests both ways and print what differs; return 1 if anything does."""
    with tempfile.TemporaryDirectory() as folder:
        plain, grafted = (_run(suite, arguments, Path(folder) / f"{way}.json", way) for way in ("plain", "adapted"))
    passed = [test for test, (outcome, _) in plain["outcomes"].items() if outcome == "passed"]
    broken = {test: grafted["outcomes"].get(test, ("missing", ""))[1] for test in passed}
    broken = {test: text for test, text in broken.items() if grafted["outcomes"].get(test, ("", ""))[0] != "passed"}
    for test, text in broken.items():
        print(f"DIFFERS {test}\n    {text}")
    for model, reason in grafted["refused"].items():
        print(f"refused {model}: {reason}")
    models = f"{sum(grafted['adapted'].values())} models of {len(grafted['adapted'])} classes were adapted"
    print(f"{len(passed)} tests pass plainly, {len(passed) - len(broken)} of them with adapters; {models}")
    return bool(broken)


def _run(suite: Path, arguments: list[str], report: Path, way: str) -> dict[str, Any]:
    print(f"{way} ...", flush=True)
    plugin = {"PYTHONPATH": os.pathsep.join((str(ROOT / "tools"), str(ROOT))), REPORT: f"{way}:{report}"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "library_tests",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        *arguments,
    ]
    subprocess.run(command, cwd=suite, env=os.environ | plugin, stdout=subprocess.DEVNULL, check=False)
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Let the models be adapted, where this is that run."""
    if os.environ.get(REPORT, "").startswith("adapted:"):
        _graft_everything()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test, with the last line of its error."""
    if report.when == "call" or report.outcome != "passed":
        lines = [line for line in str(report.longrepr or "").splitlines() if line.startswith("E ")]
        outcomes[report.nodeid] = report.outcome, (lines or [""])[0][:300]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write what this run found."""
    if os.environ.get(REPORT):
        path = Path(os.environ[REPORT].partition(":")[2])
        path.write_text(json.dumps({"outcomes": outcomes, "adapted": adapted, "refused": refused}))


def _graft_everything() -> None:
    """Adapt each whole model when it is called first."""
    original = nn.Module.__call__
    inside = [0]

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not inside[0] and "mmpeft" not in self._modules and _is_model(self):
            _adapt(self)
        inside[0] += 1
        try:
            return original(self, *args, **kwargs)
        finally:
            inside[0] -= 1

    nn.Module.__call__ = call  # type: ignore[method-assign]


def _is_model(module: nn.Module) -> bool:
    kinds = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    return hasattr(module, "pretrained_cfg") or not kinds.isdisjoint(MODELS)


def _adapt(model: nn.Module) -> None:
    import mmpeft

    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    except ValueError as error:
        refused[type(model).__name__] = str(error).splitlines()[0][:200]
        return
    adapted[type(model).__name__] += 1
    for name, parameter in model.named_parameters():
        if name in trainable:
            parameter.requires_grad_(True)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(2)
    raise SystemExit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
