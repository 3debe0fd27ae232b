"""Results on their way out: one file, or all as a zip that is made while it is sent."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from struct import pack
from urllib.parse import quote

PIECE = 1 << 20
TYPES = {
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".toml": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".glb": "model/gltf-binary",
}
BINARY = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")  # several at once, or the last ones, are answered with all
_LONG, _MOST_MEMBERS = 0xFFFF_FFFF, 0xFFFF  # what numbers of 4 and 2 bytes say for "see the long form" (zip64)
_FIRST = 315_619_200  # 1980-01-02, in seconds since 1970: zips have no time before
SEALED = "default-src 'none'; sandbox; frame-ancestors 'none'"  # of a file that a browser might show


def type_of(path: str) -> str:
    """The content type of a file, from a short list; anything that could run in a browser is only bytes."""
    return TYPES.get(Path(path).suffix.lower(), BINARY)


def attachment(name: str) -> str:
    """The Content-Disposition of a file that is saved, never shown; safe for any name (RFC 6266)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)[-100:] or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def asked_range(headers: Mapping[str, str], size: int, tag: str) -> tuple[int, int] | None:
    """The bytes from, and to, that a request asks for, of a download with this ETag; None for all. (size, size) if it
    begins behind the end."""
    found = _RANGE.fullmatch(headers.get("range", ""))
    if found is None or headers.get("if-range", tag) != tag:
        return None
    start = int(found[1])
    last = int(found[2]) if found[2] else max(start, size)
    return None if last < start else (min(start, size), min(last + 1, size))


class Zip:
    """A zip of files in a folder, stored as they are and made while it is sent. Its bytes are the same every time and
    their number is known before any is read, so that browsers show how far they are and can go on after a break.
    Checksums stand before the files, which are read twice for it: so it can also be unpacked while it arrives."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._members: list[_Member] = []
        self.size = 0
        for name in names:
            about = (folder / name).stat()
            self._members.append(_Member(folder / name, name, about.st_size, about.st_mtime, self.size))
            self.size += len(self._members[-1].header(0)) + about.st_size
        self._directory_at = self.size
        self.size += len(self._directory([0] * len(self._members)))

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Its bytes from `start` to `stop`; OSError if a file has gone."""
        stop, sums = self.size if stop is None else stop, dict[str, int]()

        def checksum(member: _Member) -> int:
            if member.name not in sums:
                sums[member.name] = reduce(lambda known, piece: zlib.crc32(piece, known), member.read(0), 0)
            return sums[member.name]

        for member in self._members:
            begin = member.at + len(member.header(0))
            if member.at < stop and start < begin:
                yield member.header(checksum(member))[max(0, start - member.at) : stop - member.at]
            if begin < stop and start < begin + member.size:
                first, left = max(0, start - begin), min(member.size, stop - begin) - max(0, start - begin)
                for piece in member.read(first):
                    yield piece[:left]
                    if (left := left - len(piece)) <= 0:
                        break
        if stop > self._directory_at:
            directory = self._directory([checksum(member) for member in self._members])
            yield directory[max(0, start - self._directory_at) : stop - self._directory_at]

    def _directory(self, sums: Sequence[int]) -> bytes:
        """The list of members at the end."""
        rows = b"".join(member.row(known) for member, known in zip(self._members, sums, strict=True))
        count, at, end = len(self._members), self._directory_at, b""
        if count >= _MOST_MEMBERS or at >= _LONG:
            end = pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(rows), at)
            end += pack("<4sLQL", b"PK\6\7", 0, at + len(rows), 1)
            count, at = min(count, _MOST_MEMBERS), min(at, _LONG)
        return rows + end + pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(rows), at, 0)


@dataclass(frozen=True)
class _Member:
    """A file of a zip: its size, when it was changed, and where its header stands."""

    path: Path
    name: str
    size: int
    changed: float
    at: int

    def read(self, first: int) -> Iterator[bytes]:
        """Its pieces from a byte on."""
        with self.path.open("rb") as file:
            file.seek(first)
            while piece := file.read(PIECE):
                yield piece

    def header(self, checksum: int) -> bytes:
        """What stands before it."""
        long = pack("<2H2Q", 1, 16, self.size, self.size) if self.size >= _LONG else b""
        return pack("<4sH", b"PK\3\4", 45) + self._about(checksum, len(long)) + self.name.encode() + long

    def row(self, checksum: int) -> bytes:
        """Its row in the list of members."""
        values = [*([self.size] * 2 if self.size >= _LONG else []), *([self.at] if self.at >= _LONG else [])]
        long = pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        more = pack("<3H2L", 0, 0, 0, 0o100644 << 16, min(self.at, _LONG))
        made_on_unix = pack("<4s2H", b"PK\1\2", 3 << 8 | 45, 45)
        return made_on_unix + self._about(checksum, len(long)) + more + self.name.encode() + long

    def _about(self, checksum: int, long: int) -> bytes:
        """What both have in common; names are in UTF-8, nothing is compressed."""
        year, month, day, hour, minute, second, *_ = time.localtime(max(self.changed, _FIRST))
        date, clock = (year - 1980) << 9 | month << 5 | day, hour << 11 | minute << 5 | second // 2
        size, name = min(self.size, _LONG), len(self.name.encode())
        return pack("<4H3L2H", 1 << 11, 0, clock, date, checksum, size, size, name, long)
