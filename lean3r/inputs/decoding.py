"""One picture file -> a complete image: known formats only, damaged files refused, memory bounded."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from lean3r.errors import InputError

logger = logging.getLogger("lean3r")
_one_large = threading.Lock()

MAX_BYTES = 3 * 2**29  # of one file: some decoders read it whole
MAX_JPEG_BYTES = 2**28
MAX_PIXELS = 200_000_000  # a picture that claims more is refused unread
# Decoders of these formats hold several whole copies: some 10 to 20 bytes a pixel.
MAX_PIXELS_OF = {"WEBP": 80_000_000, "JPEG2000": 64_000_000, "AVIF": 120_000_000, "HEIF": 120_000_000}
LARGE_PIXELS = 50_000_000  # decoded one at a time above this, and converted in bands, to bound memory
BAND_ROWS = 256
STILL_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP", "JPEG2000", "PPM")
SELF_TURNING_FORMATS = ("TIFF",)  # Pillow turns these upright by itself and still reports the orientation
ORIENTATION = 0x0112
EXIF, FOCAL_35MM, EXIF_WIDTH, EXIF_HEIGHT = 0x8769, 0xA405, 0xA002, 0xA003
DIAGONAL_35MM = math.hypot(36.0, 24.0)  # EXIF states focal lengths as if for this frame, by its diagonal
SAME_SHAPE = 0.02  # relative difference of aspect ratios that rounding explains; a crop that is less changes little
SUBFILE_TYPE, DNG_VERSION = 254, 50706  # tags of TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BY_8_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)
KNOWN_HEADS = (
    (b"version https://git-lfs", "a Git LFS pointer; download the real file"),
    (b"\x89PNG", "damaged: not a valid PNG image"),
    (b"\xff\xd8", "damaged: not a valid JPEG image"),
    (b"II*\0", "a damaged TIFF, or an unsupported kind such as floating point; save it with 8 or 16 bits"),
    (b"MM\0*", "a damaged TIFF, or an unsupported kind such as floating point; save it with 8 or 16 bits"),
    (b"v/1\x01", "OpenEXR is not supported; save it as PNG or JPEG"),
    (b"%PDF", "not an image but a PDF"),
    (b"PK\x03\x04", "not an image but an archive"),
)


@contextmanager
def open_image(file: BinaryIO) -> Iterator[Image.Image]:
    """Open an image of a known format, within the size limits, still undecoded; large ones one at a time.

    Any failure inside becomes an InputError whose message is the reason, without the file's name.
    """
    head = file.read(512)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > MAX_BYTES:
        raise InputError(f"the file has {size >> 20} MB; the limit is {MAX_BYTES >> 20} MB")
    if not head:
        raise InputError("the file is empty")
    formats = FORMATS
    if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats = (*FORMATS, "HEIF")
    try:
        with Image.open(file, formats=formats) as image:
            check_pixels(image.size, image.format)
            if image.format == "TIFF":
                _check_whole(image, head)
            with _one_large if is_large(image) else nullcontext():
                if image.format in ("JPEG", "MPO"):
                    _check_jpeg(file)
                yield image
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(_why_unknown(head)) from error
    except Exception as error:  # decoders raise errors of every kind on damaged files
        raise InputError(f"damaged or not a valid image ({error})") from error


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Inside, Pillow has no size limit: its own warns from 89 megapixels on, which phones reach. Ours is checked before
    decoding."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def is_large(image: Image.Image) -> bool:
    """Whether an image is so large that only one copy is held, and converted in bands."""
    return math.prod(image.size) > LARGE_PIXELS


def check_pixels(size: tuple[int, int], kind: str | None = None) -> None:
    """Raise InputError if a picture of this size, in this format of Pillow's, would take too much memory."""
    limit = MAX_PIXELS_OF.get(kind or "", MAX_PIXELS)
    if math.prod(size) > limit:
        what = f" of {kind}" if kind in MAX_PIXELS_OF else ""
        raise InputError(
            f"{size[0]}x{size[1]} is {math.prod(size) / 1e6:.0f} megapixels, over the limit of {limit / 1e6:.0f}{what}"
        )


def exif(image: Image.Image, name: str) -> tuple[int, float | None]:
    """(orientation 1 to 8, focal length in mm for a 36 x 24 mm frame or None) from an image's EXIF. The focal length is
    not that of an image whose shape is another than the camera's: it was cropped since."""
    if image.format == "PNG":
        image.load()  # EXIF may follow the pixels: damaged pixels are not a fault of the EXIF
    try:
        fields = image.getexif()
        orientation = fields.get(ORIENTATION, 1)
        more = fields.get_ifd(EXIF)
        focal_35mm = float(more.get(FOCAL_35MM) or 0)
        sides = more.get(EXIF_WIDTH), more.get(EXIF_HEIGHT)
    except Exception as error:  # a damaged EXIF block raises anything; the picture itself may be sound
        logger.warning("%s: the EXIF data cannot be read (%s); the picture is taken as upright", name, error)
        return 1, None
    is_known = orientation in range(1, 9) and image.format not in SELF_TURNING_FORMATS
    of_camera = [side for side in sides if isinstance(side, int) and side > 0]
    is_whole = len(of_camera) < 2 or abs(_elongation(of_camera) / _elongation(image.size) - 1) < SAME_SHAPE
    return int(orientation) if is_known else 1, focal_35mm if is_whole and 0 < focal_35mm < 10_000 else None


def _elongation(size: Sequence[int]) -> float:
    """The longer side over the shorter one, the same however a picture is turned."""
    return max(size) / min(size)


def rgb_profile(image: Image.Image) -> bytes | None:
    """The ICC profile that says what a picture's colours mean as RGB; None if it has none, or one for CMYK or grey."""
    profile = image.info.get("icc_profile") or b""
    return profile if profile[16:20] == b"RGB " else None


def shrunk_by(share: float) -> int:
    """8, 4, 2 or 1: by how much a picture may shrink if at least `share` of its side length is needed."""
    return next(factor for factor in (8, 4, 2, 1) if factor * share <= 1 or factor == 1)


def plain(image: Image.Image, factor: int = 1) -> Image.Image:
    """A decoded image as RGB on white, `factor` times smaller with sides rounded up; converted in bands, so that hardly
    more than the image and the result is held in memory."""
    result = Image.new("RGB", (math.ceil(image.width / factor), math.ceil(image.height / factor)))
    for top in range(0, image.height, BAND_ROWS):
        band = image.crop((0, top, image.width, min(top + BAND_ROWS, image.height)))
        result.paste(on_white(eight_bit(band)).reduce(factor), (0, top // factor))
    return result


def eight_bit(image: Image.Image) -> Image.Image:
    """A mode that can be resized without loss: L, RGB, CMYK, LA or RGBA."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError("32-bit integer pixels are not supported; save it with 8 or 16 bits")
        return Image.fromarray(BY_8_BIT[values])
    if image.mode == "F":
        raise InputError("floating-point pixels are not supported; save it with 8 or 16 bits")
    if image.mode not in ("LA", "RGBA") and image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK", "LA", "RGBA") else image.convert("RGB")


def on_white(image: Image.Image) -> Image.Image:
    """RGB; transparency shows white."""
    if image.mode not in ("LA", "RGBA"):
        return image.convert("RGB")
    opaque = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")


def _check_whole(image: Image.Image, head: bytes) -> None:
    """Raise InputError for a camera's raw file. Most kinds are TIFF files that begin with a small preview, which would
    pass for the photo."""
    tags = getattr(image, "tag_v2", {})
    if head[8:10] == b"CR" or DNG_VERSION in tags or tags.get(SUBFILE_TYPE, 0) & 1:
        raise InputError("a camera's raw file, or a TIFF that begins with a preview; save it as JPEG, PNG or TIFF")


def _check_jpeg(file: BinaryIO) -> None:
    """Raise InputError if the pixels of a JPEG are damaged: Pillow's decoder silently fills those with grey.

    FFmpeg's decoder is strict, and faster than Pillow's at an eighth of the size. Formats that it does not support, and
    faults outside the pixels, are left to Pillow.
    """
    import av
    from av.error import FFmpegError, InvalidDataError

    position = file.tell()
    file.seek(0)
    pixels = _without_remarks(file.read(MAX_JPEG_BYTES))
    file.seek(position)
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "crccheck+bitstream+buffer+explode", "lowres": "3"}
    decoder.thread_count = 1
    try:
        decoder.decode(av.Packet(pixels))
    except InvalidDataError as error:
        raise InputError("damaged: a part of this JPEG cannot be decoded") from error
    except FFmpegError as error:
        logger.debug("a JPEG of a kind that cannot be checked: %s", error)


def _without_remarks(content: bytes) -> bytes:
    """A JPEG without its comments and application segments (EXIF, profiles, ...), except those that state how colours
    are stored."""
    kept, at = [content[:2]], 2
    while content[at : at + 1] == b"\xff" and at + 4 <= len(content):
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the first scan: pixels from here
            break
        if marker == 0xFF:  # a fill byte
            end = at + 1
        elif marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[at:end])
        at = end
    return b"".join([*kept, content[at:]])


def _why_unknown(head: bytes) -> str:
    """What a file probably is that no decoder knows, from its first bytes."""
    for start, what in KNOWN_HEADS:
        if head.startswith(start):
            return what
    if head[4:8] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3"):
        return "not an image, but perhaps a video; give it the suffix of its format"
    if b"<html" in head.lower() or b"<!doctype html" in head.lower():
        return "not an image but a web page"
    if not head.strip(b"\0"):
        return "not an image: it starts with zero bytes"
    is_text = all(c >= 32 or c in b"\t\r\n" for c in head)
    return "not an image but text" if is_text else "not an image, or of an unsupported format"
