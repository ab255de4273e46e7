"""Class names, and train, validation and test splits that are always the same and never share a sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

from mmpeft.data.config import DataConfig
from mmpeft.data.samples import Sample, listed

SPLITS = ("train", "validation", "test")
ALIASES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
ALIASES |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test"}
"""The names under which data sets keep their splits."""
SPARSE = ("vtab",)
"""Data with so few images that a class may have none to train on: 800 for the 397 classes of SUN397."""


def name_classes(
    samples: Sequence[Sample], config: DataConfig, known: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], list[int]]:
    """Return the class names and each sample's index into them.

    Names are sorted (numbers by value) unless ``classes`` or the data's own list ``known`` gives them; then a number is
    an index into these.

    Raises:
        ValueError: If labels are missing or outside ``classes``, or a class has no image.
    """
    if not samples:
        raise ValueError(f"{_where(config)}: there are no samples")
    missing = [sample.id for sample in samples if sample.label is None]
    if missing:
        raise ValueError(f"{_where(config)}: {len(missing)} of {len(samples)} samples have no label: {listed(missing)}")
    seen = {sample.label for sample in samples if sample.label is not None}
    given = config.classes or known
    if given is None:
        numeric = all(isinstance(label, int) for label in seen)
        classes = tuple(str(label) for label in sorted(seen, key=None if numeric else str))
    else:
        classes = given
    index: dict[str | int | None, int] = {name: number for number, name in enumerate(classes)}
    for label in seen:
        if isinstance(label, int):
            index[label] = index.get(str(label), -1) if given is None else label
    wrong = [sample for sample in samples if not 0 <= index.get(sample.label, -1) < len(classes)]
    if wrong:
        shown = listed(f"{sample.label!r} ({sample.id})" for sample in wrong)
        allowed = f"0 to {len(classes) - 1}, {listed(classes)}"
        raise ValueError(f"{_where(config)}: {len(wrong)} of {len(samples)} labels are no class ({allowed}): {shown}")
    labels = [index[sample.label] for sample in samples]
    _refuse_empty(classes, labels, config)
    return classes, labels


def keep_half(
    samples: Sequence[Sample], labels: Sequence[int], classes: tuple[str, ...], half: Literal["base", "new"]
) -> tuple[list[Sample], list[int], tuple[str, ...]]:
    """Return the samples, labels and names of the first ceil(n / 2) of n classes, or of the others, counted from 0."""
    middle = -(-len(classes) // 2)
    kept = range(middle) if half == "base" else range(middle, len(classes))
    pairs = [(sample, label - kept.start) for sample, label in zip(samples, labels, strict=True) if label in kept]
    return [sample for sample, _ in pairs], [label for _, label in pairs], classes[kept.start : kept.stop]


def _where(config: DataConfig) -> str:
    column = f", column {config.label_column!r}" if config.name in ("table", "datasets") else ""
    return f"data {config.path or config.name}{column}"


def _refuse_empty(classes: tuple[str, ...], labels: Sequence[int], config: DataConfig) -> None:
    counts = Counter(labels)
    empty = [name for number, name in enumerate(classes) if not counts[number]]
    if empty:
        raise ValueError(f"{_where(config)}: {len(empty)} of {len(classes)} classes have no image: {listed(empty)}")


def _rank(seed: str, sample: Sample) -> str:
    """Order samples by a hash of their id, so that adding some never reshuffles the others."""
    return sha256(f"{seed}/{sample.id}".encode()).hexdigest()


def _number(wanted: int | float, available: int) -> int:
    return wanted if isinstance(wanted, int) else max(1, round(wanted * available))


def cut_splits(
    samples: Sequence[Sample], labels: Sequence[int], classes: tuple[str, ...], config: DataConfig
) -> dict[str, list[tuple[Sample, int]]]:
    """Return the samples and labels of each split.

    Splits that the data brings along are kept, validation cut down to its ``shots``; a missing one is cut from the
    training samples, class by class: validation and test by a hash of the id alone, the ``per_class`` training samples
    by a hash with ``split_seed``. Without ``validation``, those samples are for training.

    Raises:
        ValueError: If a sample id occurs twice, or classes have too few images; all such classes are named.
    """
    _refuse_repeated([sample.id for sample in samples], config)
    splits: dict[str, list[tuple[Sample, int]]] = {name: [] for name in SPLITS}
    pools: dict[int, list[tuple[Sample, int]]] = defaultdict(list)
    for sample, label in zip(samples, labels, strict=True):
        if sample.split in (None, "train") or (sample.split == "validation" and config.validation is None):
            pools[label].append((sample, label))
        else:
            splits[str(sample.split)].append((sample, label))
    wanted = {"validation": config.validation, "test": config.test}
    cut = [name for name, number in wanted.items() if not splits[name] and number is not None]
    if config.shots is not None and config.validation is not None:
        splits["validation"] = _first_of_each(splits["validation"], config.validation)
    short = []
    for label, name in enumerate(classes):
        parts = _cut_class(pools[label], cut, config)
        if config.name not in SPARSE and (not parts["train"] or any(not parts[split] for split in cut)):
            short.append(f"{name} ({len(pools[label])})")
        for split, part in parts.items():
            splits[split] += part
    if short:
        numbers = f"validation: {config.validation}, test: {config.test}, per_class: {config.per_class}"
        raise ValueError(
            f"{_where(config)}: {len(short)} of {len(classes)} classes have too few images for {numbers}: "
            f"{listed(short)}"
        )
    return {name: sorted(part, key=lambda pair: pair[0].id) for name, part in splits.items()}


def _cut_class(
    pool: list[tuple[Sample, int]], cut: list[str], config: DataConfig
) -> dict[str, list[tuple[Sample, int]]]:
    """Cut the samples of one class; a split that would need more than there are comes out empty."""
    rest = sorted(pool, key=lambda pair: _rank("", pair[0]))
    parts: dict[str, list[tuple[Sample, int]]] = {}
    for split, wanted in (("validation", config.validation), ("test", config.test)):
        if split in cut and isinstance(wanted, int | float):
            number = _number(wanted, len(pool))
            parts[split], rest = (rest[:number], rest[number:]) if number <= len(rest) else ([], [])
    rest.sort(key=lambda pair: _rank(str(config.split_seed), pair[0]))
    parts["train"], left = rest[: config.per_class], rest[config.per_class or len(rest) :]
    if "test" in cut and config.test == "rest":
        parts["test"] = left
    return parts


def _first_of_each(pairs: list[tuple[Sample, int]], number: int | float) -> list[tuple[Sample, int]]:
    """Return so many samples (or such a share) of each class, by a hash of the id alone."""
    pools: dict[int, list[tuple[Sample, int]]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: _rank("", pair[0])):
        pools[pair[1]].append(pair)
    return [pair for pool in pools.values() for pair in pool[: _number(number, len(pool))]]


def cut_pool(samples: Sequence[Sample], config: DataConfig) -> dict[str, list[Sample]]:
    """Return the samples of each split as `cut_splits` does; those without a class count as one class."""
    if config.half is not None:
        raise ValueError(f"data.half: {config.half!r} is for images with a class, not for masks or captions")
    names = [str(sample.label or "images") for sample in samples]
    classes = tuple(sorted(set(names)))
    labels = {name: label for label, name in enumerate(classes)}
    cut = cut_splits(samples, [labels[name] for name in names], classes, config)
    return {name: [sample for sample, _ in part] for name, part in cut.items()}


def _refuse_repeated(ids: list[str], config: DataConfig) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"data {config.path or config.name}: {len(repeated)} images occur more than once, so splits could share "
            f"them: {listed(repeated)}"
        )
