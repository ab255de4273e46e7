"""Class names, and train, validation and test splits that are always the same and never share a sample."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import sha256

from mmpeft.data.config import DataConfig
from mmpeft.data.samples import Sample, listed

SPLITS = ("train", "validation", "test")
ALIASES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
ALIASES |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test"}
"""The names under which data sets keep their splits."""


def name_classes(samples: Sequence[Sample], config: DataConfig) -> tuple[tuple[str, ...], list[int]]:
    """Return the class names and each sample's index into them.

    Names are sorted (numbers by value) unless ``classes`` gives them; then a number is an index into ``classes``.

    Raises:
        ValueError: If labels are missing or outside ``classes``, or a class has no image.
    """
    missing = [sample.id for sample in samples if sample.label is None]
    if missing:
        raise ValueError(f"{_where(config)}: {len(missing)} of {len(samples)} samples have no label: {listed(missing)}")
    found = {sample.label for sample in samples if sample.label is not None}
    if config.classes is None:
        numeric = all(isinstance(label, int) for label in found)
        classes = tuple(str(label) for label in sorted(found, key=None if numeric else str))
    else:
        classes = config.classes
    index: dict[str | int | None, int] = {name: number for number, name in enumerate(classes)}
    for label in found:
        if isinstance(label, int):
            index[label] = index.get(str(label), -1) if config.classes is None else label
    wrong = [sample for sample in samples if not 0 <= index.get(sample.label, -1) < len(classes)]
    if wrong:
        shown = listed(f"{sample.label!r} ({sample.id})" for sample in wrong)
        allowed = f"0 to {len(classes) - 1}, {listed(classes)}"
        raise ValueError(f"{_where(config)}: {len(wrong)} of {len(samples)} labels are no class ({allowed}): {shown}")
    labels = [index[sample.label] for sample in samples]
    _refuse_empty(classes, labels, config)
    return classes, labels


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

    Splits that the data brings along are kept; a missing one is cut from the training samples, class by class:
    validation and test by a hash of the id alone, the ``per_class`` training samples by a hash with ``split_seed``.

    Raises:
        ValueError: If a sample id occurs twice, or classes have too few images; all such classes are named.
    """
    _refuse_repeated([sample.id for sample in samples], config)
    splits: dict[str, list[tuple[Sample, int]]] = {name: [] for name in SPLITS}
    pools: dict[int, list[tuple[Sample, int]]] = defaultdict(list)
    for sample, label in zip(samples, labels, strict=True):
        if sample.split in (None, "train"):
            pools[label].append((sample, label))
        else:
            splits[str(sample.split)].append((sample, label))
    cut = [name for name in ("validation", "test") if not splits[name]]
    short = []
    for label, name in enumerate(classes):
        parts = _cut_class(pools[label], cut, config)
        if not parts["train"] or any(not parts[split] for split in cut):
            short.append(f"{name} ({len(pools[label])})")
        for split, part in parts.items():
            splits[split] += part
    if short:
        wanted = f"validation: {config.validation}, test: {config.test}, per_class: {config.per_class}"
        raise ValueError(
            f"{_where(config)}: {len(short)} of {len(classes)} classes have too few images for {wanted}: "
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
        if split in cut and not isinstance(wanted, str):
            number = _number(wanted, len(pool))
            parts[split], rest = (rest[:number], rest[number:]) if number <= len(rest) else ([], [])
    rest.sort(key=lambda pair: _rank(str(config.split_seed), pair[0]))
    parts["train"], left = rest[: config.per_class], rest[config.per_class or len(rest) :]
    if "test" in cut and config.test == "rest":
        parts["test"] = left
    return parts


def cut_pool(samples: Sequence[Sample], config: DataConfig) -> dict[str, list[Sample]]:
    """Return the samples of each split as `cut_splits` does; those without a class count as one class."""
    names = [str(sample.label or "images") for sample in samples]
    classes = tuple(sorted(set(names)))
    cut = cut_splits(samples, [classes.index(name) for name in names], classes, config)
    return {name: [sample for sample, _ in part] for name, part in cut.items()}


def _refuse_repeated(ids: list[str], config: DataConfig) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"data {config.path or config.name}: {len(repeated)} images occur more than once, so splits could share "
            f"them: {listed(repeated)}"
        )
