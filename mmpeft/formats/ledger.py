"""Published tensors, entered one by one under our names; every problem of a file is one error in the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor

from mmpeft.formats.tensor_file import MOST, described, refusal, refuse
from mmpeft.methods import LinearProbe, Method

Shape = tuple[int, ...]


class Ledger:
    """The named values of a published file, and those of them that are entered under our names so far."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, dict(values)
        self.tensors: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self.expected: list[str] = []

    def __contains__(self, pattern: str) -> bool:
        return any(re.fullmatch(pattern, key) for key in self.values)

    def shape(self, pattern: str, dimensions: int) -> Shape:
        """Return the shape that most tensors of these names have; a file without any is of another format."""
        named = [value for key, value in self.values.items() if re.fullmatch(pattern, key)]
        shapes = Counter(tuple(v.shape) for v in named if isinstance(v, Tensor) and v.ndim == dimensions)
        if not shapes:
            raise refusal(self.path, [f"no {dimensions}-dimensional tensor is named like {pattern}", self.looks()])
        return shapes.most_common(1)[0][0]

    def count(self, pattern: str) -> int:
        """Return how many blocks a file describes, by the highest number in names of this pattern."""
        matches = (re.fullmatch(pattern, key) for key in self.values)
        digits = max((match[1] for match in matches if match), key=lambda text: (len(text), text), default="")
        if len(digits) > len(str(len(self.values))) + 1 or int(digits or 0) >= max(1, len(self.values)):
            refuse(self.path, [f"it names block {digits[:30]}, and has {len(self.values)} values in all"])
        return int(digits) + 1 if digits else 0

    def enter(self, ours: str, theirs: str, shape: Shape, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take a tensor of this shape out of the file, under our name and, where that is another, in our shape."""
        value = self.take(theirs, shape)
        if value is not None:
            self.tensors[ours] = (change(value) if change else value).contiguous()

    def take(self, theirs: str, shape: Shape) -> Tensor | None:
        """Take a tensor out of the file; one that is missing or has another shape is a problem, and None."""
        self.expected.append(theirs)
        if theirs not in self.values:
            self.problems.append(f"missing {theirs}")
            return None
        value = self.values.pop(theirs)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else described(value)
            self.problems.append(f"{theirs}: {kind}, where numbers with fractions are expected")
        elif value.shape != shape:
            self.problems.append(f"{theirs}: shape {tuple(value.shape)}, the others need {shape}")
        else:
            return value
        return None

    def head(self, name: str = "head") -> list[Method]:
        """Enter the classifier of a timm model, where the file has one."""
        if rf"{name}\..*" not in self:
            return []
        classes, width = self.shape(rf"{name}\.weight", 2)
        self.enter("head.linear_probe.weight", f"{name}.weight", (classes, width))
        self.enter("head.linear_probe.bias", f"{name}.bias", (classes,))
        return [LinearProbe()]

    def leave(self, *patterns: str) -> int:
        """Leave out what is not the adapter's, such as the frozen backbone, and return how much that was."""
        kept = {key: value for key, value in self.values.items() if not any(re.fullmatch(p, key) for p in patterns)}
        left, self.values = len(self.values) - len(kept), kept
        return left

    def close(self) -> dict[str, Tensor]:
        """Return our tensors; all that is missing, misshapen or left over is one ValueError."""
        self.problems += [f"unexpected {key}{self._like(key) if i < MOST else ''}" for i, key in enumerate(self.values)]
        refuse(self.path, self.problems)
        return self.tensors

    def _like(self, key: str) -> str:
        close = get_close_matches(key, self.expected, n=1, cutoff=0.8)
        return f" (did you mean {close[0]!r}?)" if close else ""

    def looks(self) -> str:
        """Say which format the names are those of, or else what they are."""
        from mmpeft.formats import READ, external_formats, format_named

        signs = {name: foreign.sign for name, foreign in external_formats().items()}
        for name in READ:
            foreign = getattr(format_named(name, READ), "FORMAT", None)
            signs |= {} if foreign is None else {name: foreign.sign}
        for name, sign in signs.items():
            if any(re.search(sign, key) for key in self.values):
                return f"it looks like {name}: --format {name}"
        keys = list(self.values)
        names = ", ".join(key[:100] for key in keys[:4])
        return f"its {len(keys)} values are named {names}{' ...' if len(keys) > 4 else ''}"


def state(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the part of a flat file that lies under the first of these names that it has, or all of it."""
    for name in names:
        inside = {key.removeprefix(f"{name}."): value for key, value in content.items() if key.startswith(f"{name}.")}
        if inside:
            return inside
    return dict(content)
