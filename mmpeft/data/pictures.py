"""Pictures from files that anybody may have made: checked before they are decoded, upright, in 8-bit RGB."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded, whatever a file's name says: none of these decoders starts another program. MPO counts as JPEG."""
MOST_BYTES = 2**30
"""Of a file."""
MOST_PIXELS = 2**26
"""Of a picture, before it is resized and after: 256 MiB, for Pillow keeps 4 bytes of each."""
MOST_NUMBERS = MOST_PIXELS // 4
"""Of a picture of numbers of 32 bits, which take several times the memory while they are converted."""
MOST_ASPECT = 100
"""How many times as long as the other a side may be: the centre of a longer strip shows next to nothing of it."""


class PictureError(ValueError):
    """A picture that can't be read: ``name`` is its file or id, ``reason`` what is wrong with it."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"picture {_short(name)}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return PictureError, (self.name, self.reason)


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture in a file, read whenever it is called; what it raises is a `PictureError`."""

    path: str

    def __call__(self) -> Image.Image:
        """Return the picture as people see it: turned as its EXIF data say, in 8 bits of red, green and blue."""
        with self.opened() as image:
            return to_rgb(upright(image))

    def size(self) -> tuple[int, int]:
        """Return width and height as people see it; most formats say them without being decoded."""
        with self.opened() as image:
            if image.format == "TIFF":  # Pillow has turned these already
                return image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
            return image.size[::-1] if turned else image.size

    def verify(self) -> None:
        """Decode the picture, a JPEG at a fraction of its size."""
        with self.opened() as image:
            image.draft("RGB", (32, 32))
            to_rgb(upright(image))

    @contextmanager
    def opened(self) -> Iterator[Image.Image]:
        """Yield the picture as it stands in its file, not yet decoded; it is one of an allowed size."""
        with named(self.path), Image.open(self._source(), formats=FORMATS) as image:
            check_shape(*image.size)
            if image.mode in ("I", "F") and image.width * image.height > MOST_NUMBERS:
                raise ValueError(f"it has {image.width} x {image.height} numbers, more than {MOST_NUMBERS:,}")
            if getattr(image, "is_animated", False) and image.format != "MPO":  # further pictures of a camera's file
                raise ValueError(f"it has {getattr(image, 'n_frames', 'several')} frames: save the one that is meant")
            yield image

    def _source(self) -> str | BytesIO:
        """Return what Pillow is to open."""
        return checked_file(self.path)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Name the picture in whatever is raised: decoders meet with broken files in every way that there is."""
    try:
        yield
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(name, f"cannot identify it as any of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise PictureError(name, _short(str(error) or type(error).__name__)) from error


def checked_file(path: str) -> str:
    """Return a path; raise a ValueError if there is no file of an allowed size."""
    status = os.stat(path)  # noqa: PTH116 (no Path for each of a million)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"it has {status.st_size:,} bytes, more than {MOST_BYTES:,}")
    return path


def check_shape(width: int, height: int, shorter: int | None = None) -> None:
    """Raise a ValueError if a picture is too large or too long, as it is or with its shorter side resized."""
    long, short = max(width, height), max(1, min(width, height))
    if not width * height:
        raise ValueError("it has no pixels")
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {MOST_PIXELS:,}: make it smaller")
    if long > MOST_ASPECT * short:
        raise ValueError(f"it has {width} x {height} pixels, one side more than {MOST_ASPECT} times the other: cut it")
    if shorter is not None and shorter * (shorter * long // short) > MOST_PIXELS:
        raise ValueError(
            f"it has {width} x {height} pixels, more than {MOST_PIXELS:,} once its shorter side is {shorter}: cut it"
        )


def upright(image: Image.Image) -> Image.Image:
    """Decode a picture and turn it as its EXIF data say; it is changed in place."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture in 8 bits of red, green and blue, of any mode.

    Of 16 bits (``I;16``, and ``I`` of 256 to 65,535) the upper 8 count, as Pillow reads colours of 16 bits; ``F`` is
    from 0 to 1. Transparency is left out, as torchvision and timm do: a pixel counts with the colour that it has.
    ``CMYK``, ``YCbCr``, ``HSV``, palettes and grey are converted by Pillow.

    Raises:
        ValueError: If numbers of 32 bits are in no such range, so that nothing says what is white.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_to_bytes(image))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_bytes(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):
            raise ValueError(f"its numbers (mode F) are from {low:g} to {high:g}, not from 0 to 1: save it in 8 bits")
        return np.round(values * 255).astype(np.uint8)
    if image.mode == "I" and not ((low >= 0 and 255 < high < 2**16) or image.format == "PPM"):
        raise ValueError(f"its numbers of 32 bits (mode I) are from {low} to {high}: save it in 8 or 16 bits")
    return (values >> 8).astype(np.uint8)


def read_picture(path: str) -> Image.Image:
    """Read a picture as `PictureFile` does."""
    return PictureFile(str(path))()


def verify_picture(read: Callable[[], Image.Image]) -> None:
    """Decode a picture, as cheaply as what reads it can."""
    if isinstance(read, PictureFile):
        read.verify()
    else:
        read().load()


def size_of(read: Callable[[], Image.Image]) -> tuple[int, int]:
    """Return a picture's width and height, without decoding it where what reads it can tell."""
    return read.size() if isinstance(read, PictureFile) else read().size


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
