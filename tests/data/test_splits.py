from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from mmpeft.data import DataConfig
from mmpeft.data.samples import Sample
from mmpeft.data.splits import cut_splits, keep_half, name_classes

PINNED = {
    "train": ["ant/4.png", "ant/5.png"],
    "validation": ["ant/1.png", "ant/2.png"],
    "test": ["ant/0.png", "ant/3.png"],
}


def config(**values):
    return DataConfig(**{"name": "folder", "path": "somewhere", **values})


def make_samples(per_class=50, classes=("ant", "bee", "cat"), split=None, prefix=""):
    names = [(name, number) for name in classes for number in range(per_class)]
    return [Sample(f"{prefix}{name}/{number}.png", name, Image.Image, split) for name, number in names]


def split_ids(samples, options):
    classes, labels = name_classes(samples, options)
    return {
        name: [sample.id for sample, _ in part] for name, part in cut_splits(samples, labels, classes, options).items()
    }


@pytest.mark.parametrize(
    "values", [{}, {"per_class": 5, "validation": 7, "test": "rest"}, {"per_class": 3, "test": 0.5}]
)
def test_splits_are_disjoint_and_stable(values):
    options = config(**values)
    splits = split_ids(make_samples(), options)
    every = [name for part in splits.values() for name in part]
    assert len(every) == len(set(every))
    assert splits == split_ids(make_samples()[::-1], options)


def test_splits_are_the_same_on_every_machine():
    splits = split_ids(make_samples(per_class=6, classes=("ant",)), config(validation=2, test=2))
    assert splits == PINNED


def test_counts_and_shares_are_per_class():
    splits = split_ids(make_samples(), config(per_class=5, validation=7, test=0.2))
    assert [Counter(name.split("/")[0] for name in splits[split]) for split in ("train", "validation", "test")] == [
        {"ant": count, "bee": count, "cat": count} for count in (5, 7, 10)
    ]


def test_the_rest_is_everything_else():
    splits = split_ids(make_samples(), config(per_class=5, validation=7, test="rest"))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [15, 21, 114]


def test_the_seed_changes_training_but_never_validation():
    one, two = (split_ids(make_samples(), config(per_class=5, split_seed=seed)) for seed in (0, 1))
    assert one["validation"] == two["validation"]
    assert one["test"] == two["test"]
    assert one["train"] != two["train"]


def test_more_images_move_none_between_validation_and_training():
    few, more = (split_ids(make_samples(count), config(validation=5, test=5)) for count in (50, 60))
    old = set(few["train"]) | set(few["test"])
    assert not [name for name in more["validation"] if name in set(few["train"]) and name not in old]
    assert len(set(few["validation"]) & set(more["validation"])) > len(few["validation"]) // 2


def test_splits_of_the_data_are_kept():
    samples = make_samples(20, split="train", prefix="train/") + make_samples(4, split="test", prefix="test/")
    splits = split_ids(samples, config(validation=2))
    assert sorted(splits["test"]) == sorted(sample.id for sample in samples if sample.split == "test")
    assert len(splits["validation"]) == 6
    assert len(splits["train"]) == 54


def test_too_few_images_name_every_class():
    samples = make_samples(50, ("ant",)) + make_samples(3, ("bee",)) + make_samples(5, ("cat",))
    with pytest.raises(
        ValueError, match=r"2 of 3 classes have too few images for validation: 4, .*: bee \(3\), cat \(5\)"
    ):
        split_ids(samples, config(validation=4, test=4))


def test_a_repeated_id_is_refused():
    samples = make_samples(20)
    with pytest.raises(ValueError, match=r"1 images occur more than once.*ant/0.png"):
        split_ids([*samples, samples[0]], config())


def test_numbers_are_sorted_by_value_and_names_alphabetically():
    numbers = [Sample(str(index), label, Image.Image) for index, label in enumerate([10, 9, 10])]
    assert name_classes(numbers, config()) == (("9", "10"), [1, 0, 1])
    names = [Sample(str(index), label, Image.Image) for index, label in enumerate(["b", "a"])]
    assert name_classes(names, config()) == (("a", "b"), [1, 0])


def test_given_classes_keep_their_order_and_index_numbers():
    names = [Sample(str(index), label, Image.Image) for index, label in enumerate(["b", "a"])]
    assert name_classes(names, config(classes=["b", "a"])) == (("b", "a"), [0, 1])
    numbers = [Sample(str(index), label, Image.Image) for index, label in enumerate([1, 0])]
    assert name_classes(numbers, config(classes=["b", "a"]))[1] == [1, 0]


def test_labels_out_of_range_are_counted_and_named():
    samples = [Sample(f"{label}.png", label, Image.Image) for label in (0, 1, 2, -1)]
    with pytest.raises(ValueError, match=r"2 of 4 labels are no class \(0 to 1, no, yes\): 2 \(2.png\), -1 \(-1.png\)"):
        name_classes(samples, config(classes=["no", "yes"]))


def test_missing_labels_are_counted_and_named():
    samples = [Sample("a.png", None, Image.Image), Sample("b.png", "x", Image.Image)]
    with pytest.raises(ValueError, match=r"1 of 2 samples have no label: a.png"):
        name_classes(samples, config())


def test_an_empty_class_is_named():
    with pytest.raises(ValueError, match="1 of 4 classes have no image: dog"):
        name_classes(make_samples(3), config(classes=["ant", "bee", "cat", "dog"]))


@pytest.mark.parametrize(("number", "base"), [(4, 2), (5, 3), (1, 1)])
def test_the_base_half_is_the_larger_one_and_labels_begin_at_zero(number, base):
    names = tuple("abcde"[:number])
    samples = make_samples(3, names)
    classes, labels = name_classes(samples, config())
    halves = {half: keep_half(samples, labels, classes, half) for half in ("base", "new")}
    assert halves["base"][2] == names[:base]
    assert halves["new"][2] == names[base:]
    assert sum(len(kept) for kept, _, _ in halves.values()) == 3 * number
    for kept, indices, own in halves.values():
        assert [own[index] for index in indices] == [sample.label for sample in kept]


def test_shots_are_drawn_from_the_splits_of_the_data():
    samples = [
        *make_samples(20, split="train", prefix="train/"),
        *make_samples(9, split="validation", prefix="val/"),
        *make_samples(7, split="test", prefix="test/"),
    ]
    drawn = {shots: split_ids(samples, config(shots=shots)) for shots in (2, 16)}
    assert [len(drawn[2][name]) for name in ("train", "validation", "test")] == [6, 6, 21]
    assert [len(drawn[16][name]) for name in ("train", "validation", "test")] == [48, 12, 21]
    assert set(drawn[2]["train"]) < set(drawn[16]["train"])
    other = split_ids(samples, config(shots=2, split_seed=1))
    assert other["train"] != drawn[2]["train"]
    assert other["validation"] == drawn[2]["validation"]


def test_without_validation_its_images_are_trained_on():
    samples = make_samples(8, split="train", prefix="train/") + make_samples(4, split="validation", prefix="val/")
    splits = split_ids(samples, config(validation=None, test=2))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [30, 0, 6]
    assert any(name.startswith("val/") for name in splits["train"])
