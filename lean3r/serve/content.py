"""What an uploaded file is, by its first bytes, and the name under which it is stored."""

from __future__ import annotations

import io
import os
import re
import unicodedata
import zipfile
from pathlib import Path

from lean3r.inputs.decoding import STILL_BRANDS
from lean3r.inputs.listing import natural_key, printable

HEAD = 64  # bytes that say what a file is
ARCHIVE_SUFFIX = ".zip"
LONGEST_STORED = 120  # bytes of a stored name
_DIRECTORY = 16 * 2**20  # bytes of an archive's list of members: Python reads it whole
_END, _END_64, _TAIL = b"PK\x05\x06", b"PK\x06\x07", 65_557
_PLAIN = re.compile(r"[^\w.+@(), -]", re.UNICODE)
_RIFF = {b"WEBP": ".webp", b"AVI ": ".avi"}
_HEADS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
    (b"\xff\x4f\xff\x51", ".jp2"),
    (b"P5", ".pgm"),
    (b"P6", ".ppm"),
    (b"PK\x03\x04", ARCHIVE_SUFFIX),
    (b"\x1aE\xdf\xa3", ".mkv"),
    (b"\0\0\x01\xba", ".mpg"),
    (b"\0\0\x01\xb3", ".mpg"),
    (b"0&\xb2u\x8ef\xcf\x11", ".wmv"),
    (b"FLV\x01", ".flv"),
    (b"OggS", ".ogv"),
    (b"\x06\x0e+4\x02\x05\x01\x01", ".mxf"),
    (b"\x1f\x07\0", ".dv"),
    (b"DKIF\0\0", ".ivf"),
    (b"YUV4MPEG2 ", ".y4m"),
    (b"nut/multimedia container\0", ".nut"),
    *((b"\0\0\0\1" + kind, ".h264") for kind in (b"\x09", b"\x27", b"\x47", b"\x67")),
    *((b"\0\0\0\1" + kind, ".h265") for kind in (b"\x40\1", b"\x46\1")),
)
_SAME = {
    ".jpg": (".jpeg", ".jfif", ".mpo", ".mjpeg", ".mjpg"), ".tif": (".tiff",), ".heic": (".heif", ".hif", ".avif"),
    ".mp4": (".mov", ".m4v", ".3gp"), ".mpg": (".mpeg",), ".ts": (".mts", ".m2ts"), ".mkv": (".webm",),
    ".h264": (".264",), ".h265": (".265", ".hevc"),
}  # fmt: skip
PICTURES = (".jpg", ".png", ".tif", ".gif", ".bmp", ".jp2", ".pgm", ".ppm", ".webp", ".heic")


def suffix_of(head: bytes) -> str | None:
    """The usual suffix of a picture, a video or a zip that begins like this; None for anything else."""
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return ".heic" if head[8:12] in STILL_BRANDS else ".mp4"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free") and head[:4] != b"\0\0\0\0":
        return ".mp4"  # old QuickTime
    for start, suffix in _HEADS:
        if head.startswith(start):
            plausible = suffix not in (".pgm", ".ppm", ".bmp") or _is_plausible(head, suffix)
            return suffix if plausible else None
    return None


def _is_plausible(head: bytes, suffix: str) -> bool:
    """Whether the two letters that begin some formats are not those of a text."""
    return head[6:10] == b"\0\0\0\0" if suffix == ".bmp" else head[2:3].isspace() and head[3:4] in b"#0123456789 \n"


def is_transport_stream(path: Path) -> bool:
    """Whether a file is an MPEG transport stream, in packets of 188 or 192 bytes."""
    with path.open("rb") as file:
        start = file.read(5 * 192)
    packets = ((0, 188), (4, 192))  # where the first begins, and how long each is
    return any(start[first::step][:5] == b"\x47" * 5 for first, step in packets)


def kind_of(suffix: str) -> str:
    """picture, archive or video."""
    return "archive" if suffix == ARCHIVE_SUFFIX else "picture" if suffix in PICTURES else "video"


def stored_name(name: str, suffix: str, used: set[str]) -> str:
    """A name for a file of this kind: the letters of the given one that mean nothing to any system, at most 120 bytes,
    a suffix that fits the content, different from those that are `used` (in lower case), to which it is added."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", printable(name)))[-1]
    stem, given = os.path.splitext(_PLAIN.sub("_", last).strip(" ."))
    fits = given.lower() == suffix or given.lower() in _SAME.get(suffix, ())
    stem, ending = (stem, given) if fits else (stem + given, suffix)
    stem = stem.strip(" .").lstrip("-~") or "file"
    short = stem.encode()[: LONGEST_STORED - len(ending)].decode(errors="ignore").strip(" .")
    choice, number = short + ending, 2
    while choice.lower() in used:
        choice, number = f"{short}~{number}{ending}", number + 1
    used.add(choice.lower())
    return choice


def check_archive(path: Path, members: int, unpacked: int) -> str:
    """Why an archive is refused before anything in it is read; empty if it is not. Its list of members is bounded, so
    that reading it takes little memory; what the members hold is checked where they are read (inputs/listing.py)."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _TAIL - 20))
        tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        return "it cannot be read as a zip archive; it may be incomplete"
    if _END_64 in tail[max(0, at - 20) : at]:
        return "it is a zip64 archive; pack fewer pictures into each"
    if int.from_bytes(tail[at + 12 : at + 16], "little") > _DIRECTORY:
        return f"its list of members has more than {_DIRECTORY >> 20} MB"
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except Exception as error:  # zipfile raises errors of many kinds on damaged tables
        return f"it cannot be read as a zip archive ({type(error).__name__}); it may be incomplete"
    if len(found) > members:
        return f"it has {len(found):,} members; this service takes at most {members:,} (--upload-files)"
    if (whole := sum(member.file_size for member in found)) > unpacked:
        return f"it unpacks to {whole / 1e6:,.0f} MB; this service takes at most {unpacked / 1e6:,.0f} (by --upload-gb)"
    return ""


def title_of(names: list[str]) -> str:
    """What a list shows of a job: its first file, and how many more."""
    first = min(names, key=natural_key)
    return first if len(names) == 1 else f"{first} and {len(names) - 1:,} more"
