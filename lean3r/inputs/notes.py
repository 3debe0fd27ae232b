"""What a picture's file says besides its pixels: EXIF, XMP and the profile of its colours, and how they stay true in a
copy that is turned, warped or smaller."""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from lean3r.inputs.decoding import EXIF, EXIF_HEIGHT, EXIF_WIDTH, FOCAL_35MM, ORIENTATION, rgb_profile

Notes = Mapping[Any, Any]
"""`exif`, `xmp` and `icc_profile`, as far as there are any, as in the `info` of Pillow's pictures."""

WIDTH, HEIGHT, FOCAL_PLANE_UNIT, GPS = 0x0100, 0x0101, 0xA210, 0x8825
NO_UNIT, UNKNOWN = 1, 0
SHORT, LONG = 3, 4
MOST_BYTES = 65_000  # a JPEG has room for 65,533 of each kind
# What a TIFF says of a photo (description, make, model, program, date, author, copyright), not of how it is stored.
OF_PHOTO = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]")
# Of other pictures in the same file, which copies do not have, or of whole spheres.
XMP_OF_MORE = re.compile(rb"\b(?:Container|GCamera|GContainer|GDepth|GImage|GPano|HDRGainMap|hdrgm):")


def notes_of(image: Image.Image) -> dict[str, bytes]:
    """The notes of an open picture, for a copy in RGB."""
    notes = {"exif": _exif(image), "xmp": _xmp(image), "icc_profile": rgb_profile(image) or b""}
    return {kind: note for kind, note in notes.items() if note}


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB picture in the colours of sRGB, which clouds, scenes and pages are in; without a readable `profile` of its
    own, as it is."""
    transform = _to_srgb(profile) if profile else None
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(own, srgb, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    except (ImageCms.PyCMSError, OSError, ImportError):  # damaged; or a Pillow that was built without the library
        return None


def restated(notes: Notes, size: tuple[int, int], *, resized: bool = False, is_whole: bool = True) -> dict[str, bytes]:
    """The notes for an upright copy of some (width, height), whose pixels may be `resized`, and which may not show the
    `is_whole` frame of the camera.

    EXIF has neither a thumbnail then, which would show the original, nor focal lengths that no longer hold; all else of
    it stays byte for byte where it is, because notes of makers point into it.
    """
    values = {ORIENTATION: 1, WIDTH: size[0], HEIGHT: size[1], EXIF_WIDTH: size[0], EXIF_HEIGHT: size[1]}
    values |= {FOCAL_PLANE_UNIT: NO_UNIT} if resized else {}
    values |= {} if is_whole else {FOCAL_35MM: UNKNOWN}
    kept = {"exif": _with_values(notes.get("exif", b""), values), "xmp": _upright_xmp(notes.get("xmp", b""))}
    kept = {kind: note for kind, note in kept.items() if 0 < len(note) <= MOST_BYTES}
    return kept | ({"icc_profile": profile} if (profile := notes.get("icc_profile")) else {})


def save(image: Image.Image, file: Path | IO[bytes], kind: str, notes: Notes, **options: Any) -> None:
    """Write a picture with these notes and no others, in a format of Pillow's. TIFF has no XMP then."""
    said: dict[str, Any] = {"exif": b"", "icc_profile": None, **notes}
    if kind == "PNG" and (xmp := said.pop("xmp", None)) is not None:
        said["pnginfo"] = PngInfo()
        said["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    image.save(file, kind, **said, **options)


def _exif(image: Image.Image) -> bytes:
    if isinstance(exif := image.info.get("exif"), bytes):
        return exif
    kept = Image.Exif()
    with contextlib.suppress(Exception):  # a damaged block raises anything
        found = image.getexif()
        kept.update({tag: found[tag] for tag in OF_PHOTO if tag in found})
        for block in (EXIF, GPS):
            if fields := dict(found.get_ifd(block)):
                kept[block] = fields
        return kept.tobytes() if len(kept) else b""
    return b""


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return xmp.encode() if isinstance(xmp, str) else bytes(xmp) if isinstance(xmp, bytes) else b""


def _upright_xmp(xmp: bytes) -> bytes:
    return b"" if XMP_OF_MORE.search(xmp) else XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def _with_values(exif: bytes, values: Mapping[int, int]) -> bytes:
    """EXIF with other values of those numbers that it states, and without a thumbnail; nothing if it is damaged."""
    out = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = {b"II": "<", b"MM": ">"}.get(bytes(out[:2]))
    if order is None:
        return b""
    try:
        (first,) = struct.unpack_from(order + "I", out, 4)
        blocks = [first]
        for block in blocks:
            (entries,) = struct.unpack_from(order + "H", out, block)
            end = block + 2 + 12 * entries
            for at in range(block + 2, end, 12):
                tag, kind, count, value = struct.unpack_from(order + "HHII", out, at)
                if tag == EXIF and len(blocks) == 1:  # once: a block may name itself
                    blocks.append(value)
                elif tag in values and count == 1 and kind in (SHORT, LONG):
                    struct.pack_into(order + ("H" if kind == SHORT else "I"), out, at + 8, values[tag])
            if block == first and end + 4 <= len(out):
                struct.pack_into(order + "I", out, end, 0)
    except struct.error:
        return b""
    return b"Exif\0\0" + bytes(out)
