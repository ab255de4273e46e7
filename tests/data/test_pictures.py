"""Pictures are upright, in 8-bit RGB, and small enough, whatever lies in their files."""

from __future__ import annotations

import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data
from mmpeft.data.framing import Framing
from mmpeft.data.pictures import MOST_PIXELS, PictureError, PictureFile, check_shape, read_picture
from mmpeft.data.readers import READERS
from mmpeft.data.readers.masks import MaskFile
from mmpeft.data.transforms import make_transforms
from mmpeft.zoo import load_model

ORIENTATION = 0x0112
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""How an upright picture is stored under each EXIF orientation (CIPA DC-008, table of tag 274)."""


def save(path, array, orientation=1, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path, exif=exif, **options)
    return str(path)


def upright_values(colours=True):
    values = np.zeros((6, 10, 3) if colours else (6, 10), np.uint8)
    values[:2, :3], values[4:, 7:] = 250, 120
    return values


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
def test_pictures_are_upright(tmp_path, orientation, ending):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(ending, {})
    upright = upright_values()
    file = PictureFile(save(tmp_path / f"x.{ending}", STORED[orientation](upright), orientation, **options))
    assert file.size() == (10, 6)
    # JPEG is lossy: its largest error here is below 40 of the 120 and more between the three grounds
    assert np.abs(np.asarray(file()).astype(int) - upright).max() <= (40 if ending == "jpg" else 0)


@pytest.mark.parametrize("orientation", [3, 6])
def test_every_reader_turns_pictures_and_what_belongs_to_them(tmp_path, orientation):
    upright = upright_values()
    for number in range(4):
        save(tmp_path / "images" / "a" / f"{number}.png", STORED[orientation](upright), orientation)
        save(tmp_path / "masks" / "a" / f"{number}.png", upright[..., 0])
    (tmp_path / "images" / "t.csv").write_text("image,label\na/0.png,x\na/1.png,y\n")
    (tmp_path / "images" / "captions.json").write_text(str({f"a/{n}.png": "one" for n in range(4)}).replace("'", '"'))
    images = str(tmp_path / "images")
    for values in (
        {"name": "folder", "path": images},
        {"name": "table", "path": f"{images}/t.csv"},
        {"name": "captions", "path": images},
        {"name": "masks", "path": images, "mask_path": str(tmp_path / "masks"), "classes": ["x"]},
    ):
        sample = READERS[values["name"]](DataConfig(**values))[0]
        assert np.array_equal(np.asarray(sample.open()), upright), values["name"]
        if sample.mask is not None:
            assert np.array_equal(np.asarray(sample.mask()), upright[..., 0])


def test_a_mask_of_the_stored_pixels_is_refused_and_its_turned_one_taken(tmp_path):
    stored, config = STORED[6](upright_values()), {"name": "masks", "classes": ["a", "b"], "path": str(tmp_path / "i")}
    for number in range(4):
        save(tmp_path / "i" / f"{number}.png", stored, 6)
        save(tmp_path / "m" / f"{number}.png", (stored[..., 0] == 250).astype(np.uint8))
        save(tmp_path / "turned" / f"{number}.png", (stored[..., 0] == 250).astype(np.uint8), 6)
    from mmpeft.data.masks import load_masks

    model = load_model("tiny/vit")
    with pytest.raises(ValueError, match="it has 6 x 10 pixels, its image 10 x 6, turned as its EXIF data say"):
        load_masks(DataConfig(**config, mask_path=str(tmp_path / "m")), model)
    train = load_masks(DataConfig(**config, mask_path=str(tmp_path / "turned")), model).train
    assert train[0]["mask"][:8, :8].eq(1).all()
    assert not train[0]["mask"][16:].any()


def test_a_picture_given_by_its_path_is_upright(tmp_path):
    from mmpeft.assembly.finished_adapters import _cut

    path = save(tmp_path / "x.png", STORED[6](upright_values()), 6)
    assert np.array_equal(np.asarray(read_picture(path)), upright_values())
    assert np.asarray(_cut(path, 6))[0, 0].tolist() == [250, 250, 250]


RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
"""257 times every value of 8 bits."""


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_pictures_of_16_bits_keep_their_greys(tmp_path, ending):
    Image.fromarray(RAMP).save(tmp_path / f"x.{ending}")
    assert Image.open(tmp_path / f"x.{ending}").mode in ("I;16", "I")
    values = np.asarray(read_picture(str(tmp_path / f"x.{ending}")))
    assert np.array_equal(values, np.arange(256).reshape(16, 16, 1).repeat(3, 2))


def test_grey_of_16_bits_is_read_as_colours_of_16_bits_are(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    values = np.random.default_rng(0).integers(0, 65536, 64, dtype=np.uint16)
    rows = b"\0" + np.repeat(values, 3).astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", 64, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "rgb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    Image.fromarray(values[None]).save(tmp_path / "grey.png")
    grey, colour = (np.asarray(read_picture(str(tmp_path / f"{name}.png"))) for name in ("grey", "rgb"))
    assert np.array_equal(grey, colour)


def picture(mode):
    """A picture of 2 x 1 pixels and the colours that it is to become."""
    palette = [10, 20, 30, 200, 100, 50]
    if mode == "F":
        return Image.fromarray(np.array([[0.0, 1.0]], np.float32)), [[0, 0, 0], [255, 255, 255]]
    if mode == "I":
        return Image.fromarray(np.array([[0, 65535]], np.int32)), [[0, 0, 0], [255, 255, 255]]
    if mode == "LA":
        return Image.fromarray(np.array([[[7, 0], [9, 255]]], np.uint8), "LA"), [[7] * 3, [9] * 3]
    if mode == "CMYK":
        return Image.fromarray(np.array([[[255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), "CMYK"), [[0, 255, 255], [0] * 3]
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette(palette)
    return (image.convert("PA") if mode == "PA" else image), [palette[:3], palette[3:]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mode", "ending", "options"),
    [
        ("F", "tif", {}),
        ("I", "tif", {}),
        ("LA", "png", {}),
        ("P", "png", {"transparency": 0}),
        ("P", "png", {"transparency": b"\x00\x80"}),
        ("P", "gif", {"transparency": 1}),
        ("PA", "tif", {}),
        ("CMYK", "tif", {}),
    ],
)
def test_every_mode_has_its_conversion(tmp_path, mode, ending, options):
    image, colours = picture(mode)
    image.save(tmp_path / f"x.{ending}", **options)
    assert np.asarray(read_picture(str(tmp_path / f"x.{ending}")))[0].tolist() == colours


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 300.0]], np.float32), r"mode F\) are from 0 to 300, not from 0 to 1"),
        (np.array([[0, np.nan]], np.float32), r"mode F\) are from nan to nan"),
        (np.array([[0, 255]], np.int32), r"mode I\) are from 0 to 255: save it in 8 or 16 bits"),
        (np.array([[-5, 2**20]], np.int32), r"mode I\) are from -5 to 1048576"),
    ],
)
def test_numbers_of_an_unknown_range_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"picture .*x\.tif: its numbers.*" + message):
        read_picture(str(tmp_path / "x.tif"))


def animated(path, save_all=True):
    frames = [Image.new("L", (20, 20), value) for value in (0, 99)]
    frames[0].save(path, save_all=save_all, append_images=frames[1:])


BAD = {
    "strip.png": (lambda path: Image.new("1", (100_000, 1)).save(path), "one side more than 100 times the other"),
    "tall.png": (lambda path: Image.new("1", (1, 60_000)).save(path), "one side more than 100 times the other"),
    "large.png": (lambda path: Image.new("1", (13_000, 13_000)).save(path), "13000 x 13000 pixels, more than"),
    "numbers.tif": (
        lambda path: Image.new("F", (5000, 5000)).save(path, compression="tiff_lzw"),
        "more than 16,777,216",
    ),
    "bomb.png": (lambda path: Image.new("1", (20_000, 20_000)).save(path), "400000000 pixels"),
    "empty.png": (lambda path: path.write_bytes(b""), "cannot identify it as any of BMP"),
    "text.png": (lambda path: path.write_text("hello"), "cannot identify it as any of BMP"),
    "program.png": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"),
        "cannot identify",
    ),
    "moving.gif": (animated, "2 frames"),
    "moving.png": (animated, "2 frames"),
    "moving.webp": (animated, "2 frames"),
    "pages.tif": (animated, "2 frames"),
    "cut.jpg": (lambda path: (Image.effect_noise((64, 64), 99).save(path), os.truncate(path, 1000)), "truncated"),
    "pipe.png": (os.mkfifo, "it is no file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_picture_that_can_not_be_used_is_named(tmp_path, name):
    for label in "ab":
        for number in range(4):
            save(tmp_path / label / f"{number}.png", upright_values())
    make, message = BAD[name]
    make(tmp_path / "a" / name)
    config = {"name": "folder", "path": str(tmp_path), "validation": 0.25, "test": 0.25}
    with pytest.raises(ValueError, match=rf"1 of 9 images can't be read: a/{name} \(.*{message}"):
        load_data(DataConfig(**config), to_tensor)
    splits = load_data(DataConfig(**config, verify=False), to_tensor)
    with pytest.raises(PictureError, match=rf"picture .*a/{name}: .*{message}") as caught:
        [sample["id"] for split in (splits.train, splits.val, splits.test) for sample in split]  # type: ignore[attr-defined]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("fit", ["crop", "whole"])
def test_a_strip_is_refused_before_it_is_resized(fit):
    for transform in make_transforms(DataConfig(name="digits", fit=fit, augment=["shift"]), load_model("tiny/vit")):
        with pytest.raises(ValueError, match="1000 x 1 pixels, one side more than"):
            transform(Image.new("RGB", (1000, 1)))
        assert transform(Image.new("RGB", (90, 1))).shape == (3, 32, 32)


def test_pixels_count_before_and_after_a_picture_is_resized():
    side = int((MOST_PIXELS / 50) ** 0.5)
    check_shape(100, 2, shorter=side)
    with pytest.raises(ValueError, match="100 x 2 pixels, more than 67,108,864 once its shorter side is"):
        check_shape(100, 2, shorter=side + 1)
    with pytest.raises(ValueError, match="pixels, more than 67,108,864: make it smaller"):
        Framing(4096).plain((9, 800))


def test_bombs_and_pipes_as_masks_are_named(tmp_path):
    Image.new("1", (100_000, 1)).save(tmp_path / "x.png")
    os.mkfifo(tmp_path / "y.png")
    for name, message in (("x.png", "100000 x 1"), ("y.png", "no file")):
        with pytest.raises(PictureError, match=rf"{name}: it .*{message}"):
            MaskFile(str(tmp_path / name))()


def test_the_values_of_usual_pictures_are_pillows(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    for mode in ("RGB", "RGBA", "L", "1"):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(values).convert(mode).save(path)
        assert torch.equal(to_tensor(read_picture(str(path))), to_tensor(Image.open(path).convert("RGB")))
