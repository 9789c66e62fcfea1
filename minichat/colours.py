"""Colours in sRGB, which is what models have seen: a picture that brings a profile of other colours is converted."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from PIL import Image, ImageChops

try:
    from PIL import ImageCms
except ImportError:  # a Pillow that was built without Little CMS
    ImageCms = None  # type: ignore[assignment]

_ALIKE = 2  # of 255: profiles that differ from sRGB by no more are sRGB, rounded otherwise
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the profile's colour space
_OF_MODE = {
    "RGB": ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"),
    "L": ("1", "L", "LA", "La"),
    "CMYK": ("CMYK",),
}


def to_srgb(picture: Image.Image, profile: object) -> Image.Image:
    """The picture in sRGB, in RGB or RGBA; as it is where the profile is none, sRGB, broken, or not of its mode."""
    transform = _transform(profile) if isinstance(profile, bytes) and profile else None
    if transform is None or picture.mode not in _OF_MODE[transform.input_mode]:
        return picture
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert({"La": "LA", "RGBa": "RGBA"}[picture.mode])
    converted: Image.Image = transform.apply(picture.convert(transform.input_mode))
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> Any:
    """The conversion from a profile to sRGB; None where there is nothing to convert."""
    if ImageCms is None:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform
        sample = _sample().convert(mode)
        change = ImageChops.difference(transform.apply(sample), sample.convert("RGB")).tobytes()
    except (OSError, KeyError, ValueError, TypeError, ImageCms.PyCMSError):  # a broken profile says nothing
        return None
    return transform if max(change) > _ALIKE else None


def _sample() -> Image.Image:
    """Colours of all parts of the cube."""
    levels = range(0, 256, 17)
    colours = bytes(value for red in levels for green in levels for blue in levels for value in (red, green, blue))
    return Image.frombytes("RGB", (len(levels) ** 2, len(levels)), colours)
