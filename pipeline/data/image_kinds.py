"""Kinds of image files: formats, and numbers of bits, that OpenCV decodes as the sensor recorded them."""

import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from pipeline.errors import FD3DError

_ADVICE = "convert the images to 8 bits a channel"
_DECODED: dict[str, bool] = {}  # whether OpenCV decodes a kind of file
_SIZE_OF_J2K = (
    b"\xff\x4f\xff\x51"  # how a JPEG 2000 codestream begins: its start, and the marker of its size (ITU-T T.800, A.5.1)
)
_NO_BYTES = {
    b"\x76\x2f\x31\x01": "pixels of floating point (OpenEXR)",
    b"#?R": "pixels of floating point (Radiance HDR)",
    b"PF": "pixels of floating point (PFM)",
}
_TIFF = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"


def check_kind(image: Image.Image, path: str) -> None:
    """Refuse an image that cannot be decoded as the sensor recorded it, as far as the file's head tells.

    Args:
        image: opened, but not read.

    Raises:
        FD3DError: naming the image.
    """
    if (told := _too_deep(image, path)) is not None:
        raise FD3DError(f"image {path} has {told}; {_ADVICE}")
    kind = str(image.format)
    if kind not in _DECODED:
        import cv2  # a quarter of a second, and every command reads indices

        _DECODED[kind] = cv2.haveImageReader(path)
    if not _DECODED[kind]:
        raise FD3DError(
            f"image {path} is a {kind} file, which OpenCV does not decode here; convert the images to JPEG or PNG"
        )
    if isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.Orientation, 1) != 1:
        raise FD3DError(
            f"image {path} is a TIFF file with an orientation, by which OpenCV turns it; save the images as recorded, without orientation"
        )


def check_unknown(path: str) -> None:
    """Refuse an image that Pillow does not open because its pixels are no bytes, by its head: OpenEXR, Radiance HDR, PFM, and TIFF of
    several channels of floating point or with a sign. Of other files, as damaged ones, nothing is said.

    Raises:
        FD3DError: naming the image.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            told = next((name for start, name in _NO_BYTES.items() if head.startswith(start)), None)
            if told is None and head[:4] in _TIFF:
                with warnings.catch_warnings(
                    action="ignore"
                ):  # of damages, which Pillow has warned of when it tried to open the file
                    tags = ImageFileDirectory_v2(head[: 16 if _is_big(head) else 8])
                    file.seek(tags.next)
                    tags.load(file)
                    told = _odd_samples(tags)
    except (OSError, SyntaxError, ValueError, struct.error, TypeError, KeyError):
        return  # damaged, as told later
    if told is not None:
        raise FD3DError(f"image {path} has {told}; {_ADVICE}")


def _is_big(head: bytes) -> bool:
    """Whether a TIFF is a BigTIFF, whose head is twice as long."""
    return 43 in (head[2], head[3])


def _odd_samples(tags: Mapping[int, Any]) -> str | None:
    """Pixels of a TIFF that are no bytes of 0 to 255, in words, by its tags; None of others."""
    bits = max(np.atleast_1d(tags.get(ExifTags.Base.BitsPerSample, 1)).tolist())
    kinds = {int(kind) for kind in np.atleast_1d(tags.get(ExifTags.Base.SampleFormat, 1))}
    if bits > 8:
        return f"pixels of more than 8 bits ({bits})"
    return "pixels with a sign" if kinds != {1} else None


def _too_deep(image: Image.Image, path: str) -> str | None:
    """Pixels that OpenCV does not decode to bytes of 0 to 255, in words; None of others."""
    tiles: Any = getattr(image, "tile", [])
    details = tiles[0][3] if tiles else ""
    raw = details[0] if isinstance(details, tuple) else details  # by which alone Pillow tells 16 bits of three channels
    if image.mode[:1] in ("I", "F") or ";16" in str(raw):
        return f"pixels of more than 8 bits ({raw or image.mode})"
    if isinstance(image, PpmImageFile) and tiles and tiles[0][0].startswith("ppm") and (most := details[1]) != 255:
        return f"pixels of {f'more than 8 bits (up to {most})' if most > 255 else f'up to {most}, which OpenCV does not scale to 255'}"
    if isinstance(image, Jpeg2KImageFile) and (bits := _bits_of_j2k(Path(path).read_bytes())) > 8:
        return f"pixels of more than 8 bits ({bits})"
    return _odd_samples(image.tag_v2) if isinstance(image, TiffImageFile) else None


def _bits_of_j2k(content: bytes) -> int:
    """Largest number of bits of a channel of a JPEG 2000 file; 0 where its codestream is not found."""
    if (start := content.find(_SIZE_OF_J2K)) < 0:
        return 0
    channels = int.from_bytes(content[start + 40 : start + 42], "big")
    depths = content[start + 42 : start + 42 + 3 * channels : 3]  # of each channel less one, the highest bit for a sign
    return max(((depth & 0x7F) + 1 for depth in depths), default=0)
