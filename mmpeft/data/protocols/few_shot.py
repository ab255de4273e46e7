"""The 11 data sets on which CLIP's few-shot methods are compared (CoOp, Zhou et al. 2022, arXiv:2109.01134)."""

from __future__ import annotations

from dataclasses import dataclass, field

PHOTO = ("a photo of a {}.",)
IMAGENET_SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven ImageNet templates that CLIP's authors picked, and that Tip-Adapter averages over."""


@dataclass(frozen=True)
class FewShotTask:
    """One data set: its files as CoOp lays them out, its number of classes, and its prompt template."""

    folder: str
    """Under the root of all data sets."""
    images: str
    """Where paths of the split file begin, under the folder."""
    classes: int
    split: str | None
    """Name of the split file; None where the data set has files of its own (ImageNet's folders, Aircraft's lists)."""
    templates: tuple[str, ...] = PHOTO
    """The hand-written template of CoOp's zero-shot CLIP, ``{}`` for the class name."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Class names that the benchmark rewrites, in case the split file has the original ones."""


FEW_SHOT: dict[str, FewShotTask] = {
    "imagenet": FewShotTask("imagenet", "images", 1000, None),
    "caltech101": FewShotTask(
        "caltech-101", "101_ObjectCategories", 100, "split_zhou_Caltech101.json",
        renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
    ),
    "oxford_pets": FewShotTask(
        "oxford_pets", "images", 37, "split_zhou_OxfordPets.json", ("a photo of a {}, a type of pet.",)
    ),
    "stanford_cars": FewShotTask("stanford_cars", ".", 196, "split_zhou_StanfordCars.json"),
    "oxford_flowers": FewShotTask(
        "oxford_flowers", "jpg", 102, "split_zhou_OxfordFlowers.json", ("a photo of a {}, a type of flower.",)
    ),
    "food101": FewShotTask(
        "food-101", "images", 101, "split_zhou_Food101.json", ("a photo of {}, a type of food.",)
    ),
    "fgvc_aircraft": FewShotTask("fgvc_aircraft", "images", 100, None, ("a photo of a {}, a type of aircraft.",)),
    "sun397": FewShotTask("sun397", "SUN397", 397, "split_zhou_SUN397.json"),
    "dtd": FewShotTask("dtd", "images", 47, "split_zhou_DescribableTextures.json", ("{} texture.",)),
    "eurosat": FewShotTask(
        "eurosat", "2750", 10, "split_zhou_EuroSAT.json", ("a centered satellite photo of {}.",),
        renamed={
            "AnnualCrop": "Annual Crop Land", "HerbaceousVegetation": "Herbaceous Vegetation Land",
            "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
            "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "SeaLake": "Sea or Lake",
        },
    ),
    "ucf101": FewShotTask(
        "ucf101", "UCF-101-midframes", 101, "split_zhou_UCF101.json", ("a photo of a person doing {}.",)
    ),
}  # fmt: skip
"""The data sets by CoOp's names. Templates and renamed classes are those of CoOp's public code (MIT), as facts."""
