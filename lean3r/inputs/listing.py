"""The user's paths (folders, files, globs, zip archives, videos) -> pictures to decode, in natural order.

Nothing here decodes a still picture or writes to disk: archives are read member by member in memory, and only the
packet headers of a video are read until its frames are requested, one at a time.
"""

from __future__ import annotations

import glob
import io
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from lean3r.errors import InputError
from lean3r.inputs.animations import FILMS, animation_of
from lean3r.inputs.decoding import STILL_BRANDS
from lean3r.inputs.frames import FrameChoice, evenly
from lean3r.inputs.panorama import HEADINGS_DEG, NOTE, cuts_of
from lean3r.inputs.video import Clip, Film, Frame, scan

logger = logging.getLogger("lean3r")

# fmt: off
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".avif", ".heic", ".heif", ".hif",
    ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".ppm", ".pgm",
)
VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".wmv", ".flv",
    ".asf", ".ogv", ".vob", ".mxf", ".dv", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".m2v", ".m1v", ".mpv",
    ".m2p", ".mpe", ".mod", ".tod", ".m2t", ".trp", ".mjpeg", ".mjpg", ".y4m", ".nut", ".divx", ".f4v", ".3g2", ".ogm",
    ".qt",
)
# fmt: on
ANIMATED_SUFFIXES = (".gif", ".apng")  # in a folder; a .png, of which there may be many, is a picture
UNREAD_SUFFIXES = (".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".jxl", ".psd")
LEFT_OUT = "left out:"  # usable pictures that were not asked for
MAX_NAME_BYTES = 230  # of one part of a view's name, which becomes a file's name: file systems take 255
MAX_MEMBER_BYTES = 256 * 2**20  # one unpacked member of an archive; more is taken for a zip bomb
ONCE = (
    "a pipe or a device, which can be read only once: record it into a file first (in Python, lean3r.stream takes its "
    "frames from any iterator)"
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+]+:/", re.IGNORECASE)
_LIKE_A_FRAME = re.compile(r"(.+)_[0-9]{6,}\.png")


@dataclass(frozen=True)
class Still:
    """One picture file: its unique printable name, `open`, which returns its bytes as a seekable file, whether it is a
    separate file on disk, not in an archive or in memory, and whether it is cut out of a panorama."""

    name: str
    open: Callable[[], BinaryIO]
    is_loose: bool = True
    is_cut: bool = False


@dataclass(frozen=True)
class Selection:
    """The chosen pictures and clips in order, and the (name, reason) of everything that was left out."""

    items: tuple[Still | Clip, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the views, if everything can be decoded."""
        return tuple(name for i in self.items for name in (i.frames.values() if isinstance(i, Clip) else [i.name]))


@dataclass(frozen=True)
class Listing:
    """All pictures and whole videos of an input, in order, and the (name, reason) of what cannot be used."""

    items: tuple[Still | Film, ...]
    skipped: tuple[tuple[str, str], ...]

    def choose(
        self, choice: FrameChoice, keeping: Callable[[str], Callable[[Frame], None] | None] = lambda _: None
    ) -> Selection:
        """The pictures and frames that a choice takes; those that are thinned out are logged. `keeping` returns,
        for the name of a video, the function that receives frames decoded on the way."""
        if choice.is_stated and not any(isinstance(item, Film) for item in self.items):
            logger.warning("--fps, --every and --frames have no effect: they choose frames, and no input is a video")
        skips = Skips(self.skipped)
        items = [item.clip(choice, keeping(item.name)) if isinstance(item, Film) else item for item in self.items]
        for film in self.items:
            for reason in (film.loss, film.growth) if isinstance(film, Film) else ():
                if reason is not None:
                    skips.add(film.name, reason)
        return Selection(tuple(_thin(items, choice.max_views, skips)), tuple(skips))

    def without(self, unusable: Mapping[str, str]) -> Listing:
        """The same without the picture files that turned out to be unusable, by name with the reason."""
        lost = [i.name for i in self.items if isinstance(i, Still) and i.name in unusable]
        items = tuple(item for item in self.items if item.name not in lost)
        return Listing(items, (*self.skipped, *((name, unusable[name]) for name in lost)))

    def called(self, names: Collection[str]) -> list[Still | Clip]:
        """The items with these names, in order, chosen or not: another choice may take other frames of a video."""
        items = [item.called(names) if isinstance(item, Film) else item for item in self.items]
        return [item for item in items if (item.frames if isinstance(item, Clip) else item.name in names)]


@dataclass(frozen=True)
class _Candidate:
    """A file before it has its final name; `parts` are its folders and name, which distinguish it from others."""

    parts: tuple[str, ...]
    open: Callable[[], BinaryIO]
    is_video: bool
    is_loose: bool = True

    @property
    def header(self) -> Callable[[], BinaryIO]:
        """What opens it to read its first bytes only."""
        return self.open.begin if isinstance(self.open, _Member) else self.open


@dataclass(frozen=True)
class _Member:
    """A member of an archive: called, it is read whole; or begun."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __call__(self) -> BinaryIO:
        try:
            return io.BytesIO(self.archive.read(self.info))
        except Exception as error:  # zlib, lzma, bz2 and zipfile each raise their own kinds on damaged data
            raise InputError(f"damaged in the archive ({error})") from error

    def begin(self) -> BinaryIO:
        return cast("BinaryIO", self.archive.open(self.info))


class Skips(list[tuple[str, str]]):
    """A list of (name, reason) that also logs each entry."""

    def add(self, name: str, reason: str) -> None:
        """Append and log a warning."""
        logger.warning("skipped %s: %s", name, reason)
        self.append((name, reason))


def find_pictures(inputs: Sequence[str | Path], given: Sequence[Still] = ()) -> Listing:
    """List what `inputs` hold: single files first, in natural order, then each folder and archive as given, then the
    `given` pictures.

    Subfolders are not searched, except `images/` in a folder without pictures. Videos beside pictures are left out.
    Files that show all directions are cut into several pictures. Raises InputError if nothing is left.
    """
    skips = Skips()
    paths = [p for spec in inputs for p in expand(spec)]
    files = sorted({os.path.abspath(p) for p in paths if not p.is_dir()}, key=natural_key)
    candidates = [c for path in files for c in _from_file(Path(path), skips)]
    for folder in dict.fromkeys(Path(os.path.abspath(p)) for p in paths if p.is_dir()):
        candidates += _from_folder(folder, skips)
    # Each file once, of photos/ and photos/a.jpg; members of archives may be called alike.
    once = {each.parts if each.is_loose else (n,): each for n, each in enumerate(candidates)}
    candidates = list(once.values())
    files = len(candidates)
    candidates += [_Candidate((still.name,), still.open, False, is_loose=False) for still in given]

    items: list[Still | Film] = []
    names = _unique_names([c.parts for c in candidates])
    in_memory, taken, panoramas = names[files:], set(names), 0
    # A picture may have the name that a frame of the video would get.
    stems = {m[1] for m in map(_LIKE_A_FRAME.fullmatch, names) if m}
    for name, candidate in zip(names, candidates, strict=True):
        if not candidate.is_video:
            cuts = [] if name in in_memory else cuts_of(name, candidate.open, candidate.header)
            panoramas += bool(cuts)
            items += [Still(claim_name(cut, taken), opener, is_loose=False, is_cut=True) for cut, opener in cuts]
            items += [] if cuts else [Still(name, candidate.open, candidate.is_loose)]
            continue
        stem = claim_name(name.rpartition(".")[0] or name, stems)
        try:
            film = scan(name, stem, candidate.open)
        except InputError as error:
            skips.add(name, str(error))
            continue
        items.append(film)
        if film.damage:
            skips.add(name, film.damage)
    if not items:
        raise nothing_usable(inputs, skips)
    if panoramas:
        logger.warning(NOTE, panoramas, len(HEADINGS_DEG))
    return Listing(tuple(items), tuple(skips))


def nothing_usable(inputs: Sequence[str | Path], skipped: Sequence[tuple[str, str]]) -> InputError:
    """The error for an input without a usable view: what was tried, and the first reasons."""
    tried = ", ".join(printable(str(i)) for i in inputs) or "an empty list of inputs"
    reasons = "; ".join(r if f"{name}:" in r else f"{name}: {r}" for name, r in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return InputError(f"no usable picture in {tried} ({len(skipped)} skipped). {reasons}{more}")


def natural_key(text: str) -> tuple:
    """Sort key under which img_2 comes before img_10, upper and lower case together."""
    pieces = re.split(r"([0-9]+)", text)
    return tuple(int(p) if i % 2 else p.casefold() for i, p in enumerate(pieces)), text


def printable(name: str) -> str:
    """`name` with control characters and invalid UTF-8 escaped (\\xe9, \\n): safe in any text file."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def expand(spec: str | Path) -> list[Path]:
    """A path, or the matches of a glob. InputError if there are none."""
    path = os.path.expanduser(spec)
    if os.path.exists(path):
        return [Path(path)]
    if matches := glob.glob(path, recursive=True):
        return [Path(m) for m in matches]
    if _ADDRESS.match(str(spec)):
        raise InputError(
            f"{printable(str(spec))} is an address, and files are expected: download or record it first (in Python, "
            "lean3r.stream takes its frames from any iterator)"
        )
    what = "nothing matches" if glob.has_magic(str(spec)) else "no such file or folder:"
    raise InputError(f"{what} {printable(str(spec))}; give a folder, picture files, a glob, a .zip or a video")


def _from_file(path: Path, skips: Skips) -> list[_Candidate]:
    """One file that was named explicitly: its first bytes take precedence over its suffix."""
    if not path.is_file():
        is_pipe = path.is_fifo() or path.is_char_device()
        skips.add(printable(path.name), ONCE if is_pipe else "not a regular file")
        return []
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        skips.add(printable(path.name), f"cannot be opened ({error.strerror})")
        return []
    suffix = path.suffix.lower()
    if head.startswith(b"PK") or suffix == ".zip":
        return _from_archive(path, skips)
    still_box = head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS
    video_head = head[4:8] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3") or head[8:12] == b"AVI "
    is_video = not still_box and (video_head or suffix in VIDEO_SUFFIXES)
    return [_of_path(path, is_video or animation_of(lambda: path.open("rb")) in FILMS)]


def _of_path(path: Path, is_video: bool) -> _Candidate:
    return _Candidate(_parts(path), lambda: path.open("rb"), is_video)


def _parts(path: Path) -> tuple[str, ...]:
    """What distinguishes a file from all others, to make a name of: without the root, but with the drive of Windows."""
    drive = path.drive.strip(":\\/")
    return (*([drive] if drive else []), *path.relative_to(path.anchor).parts)


def _from_folder(folder: Path, skips: Skips) -> list[_Candidate]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: natural_key(e.name))
    except OSError as error:
        skips.add(printable(str(folder)), f"cannot read the folder ({error.strerror})")
        return []
    # For a link to itself, DirEntry raises, and Path returns False.
    files = [Path(e.path) for e in entries if e.is_symlink() or e.is_file()]
    folders = [e.name for e in entries if Path(e.path).is_dir() and not e.name.startswith(".")]
    for lost in (p for p in files if not p.exists() and p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES):
        skips.add(printable(lost.name), "a broken link")
    files = [p for p in files if p.is_file()]
    seen = [(_parts(p), lambda p=p: p.open("rb")) for p in files]
    candidates = _sort_out(seen, skips)
    if not candidates and "images" in folders:
        return _from_folder(folder / "images", skips)
    if not candidates:
        inside = f"; it has subfolders ({printable(', '.join(folders[:5]))}): give the right one" if folders else ""
        looked = f"looked for {' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)} among {len(files)} files"
        skips.add(printable(folder.name), f"no images found in {printable(str(folder))}: {looked}{inside}")
    return candidates


def _from_archive(path: Path, skips: Skips) -> list[_Candidate]:
    """Members of a zip at any depth; the archive stays open as long as a candidate refers to it."""
    label = printable(path.name)
    try:
        archive = zipfile.ZipFile(path)
        members = [m for m in archive.infolist() if not m.filename.endswith("/")]
    except Exception as error:  # zipfile raises errors of many kinds on damaged tables
        skips.add(label, f"cannot be read as a zip archive ({error}); it may be incomplete")
        return []
    if any(m.flag_bits & 1 for m in members):
        skips.add(label, "is encrypted; unpack it and give the folder instead")
        return []
    seen = []
    for member in sorted(members, key=lambda m: natural_key(m.filename)):
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if not parts:
            skips.add(printable(member.filename) or "(no name)", f"a member of {label} without a name")
        elif ".." in parts or parts[0].startswith("/") or parts[0].endswith(":"):
            skips.add(printable(member.filename), f"refused: its path points outside {label}")
        elif member.file_size > MAX_MEMBER_BYTES:
            skips.add(printable(parts[-1]), f"{member.file_size >> 20} MB unpacked, over {MAX_MEMBER_BYTES >> 20} MB")
        else:
            seen.append(((path.stem, *parts), _Member(archive, member)))
    candidates = _of_scenes(_sort_out(seen, skips), skips)
    if not candidates:
        skips.add(label, f"no images found in the archive among {len(members)} files")
    return [replace(candidate, is_loose=False) for candidate in candidates]


def _of_scenes(candidates: list[_Candidate], skips: Skips) -> list[_Candidate]:
    """Of what an archive holds without what lies in other folders beside an images/: masks, depth, smaller copies. As
    in folders, images/ counts only where there is nothing beside it."""
    homes = Counter(candidate.parts[:-1] for candidate in candidates)
    pictures = {home for home in homes if home[-1] == "images" and home[:-1] not in homes}

    def is_beside(home: tuple[str, ...]) -> bool:
        return any(home[: len(p) - 1] == p[:-1] and home[: len(p)] != p for p in pictures)

    for home in filter(is_beside, homes):
        skips.add(printable("/".join(home[1:])), f"{homes[home]} files beside images/, of which the pictures are taken")
    return [candidate for candidate in candidates if not is_beside(candidate.parts[:-1])]


def _sort_out(seen: Iterable[tuple[tuple[str, ...], Callable[[], BinaryIO]]], skips: Skips) -> list[_Candidate]:
    """Of the files in one folder or archive, keep pictures, or videos where there is no picture."""
    stills, clips = [], []
    for parts, opener in seen:
        name, suffix = parts[-1], os.path.splitext(parts[-1])[1].lower()
        if name.startswith(".") or "__MACOSX" in parts:
            logger.debug("ignored %s", printable(name))
        elif suffix in ANIMATED_SUFFIXES and animation_of(opener) in FILMS:
            clips.append(_Candidate(parts, opener, True))
        elif suffix in IMAGE_SUFFIXES:
            stills.append(_Candidate(parts, opener, False))
        elif suffix in VIDEO_SUFFIXES:
            clips.append(_Candidate(parts, opener, True))
        elif suffix in UNREAD_SUFFIXES:
            skips.add(printable(name), f"{suffix} files are not supported; save it as JPEG, PNG or 16-bit TIFF")
        else:
            logger.debug("ignored %s: not a picture by its name", printable(name))
    if stills:
        for clip in clips:
            skips.add(printable(clip.parts[-1]), "a video beside pictures; to use it, give its own path")
    return stills or clips


def _unique_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest endings of `paths` that are unique, printable: a.jpg, or left/a.jpg and right/a.jpg."""
    depth = dict.fromkeys(range(len(paths)), 1)
    while True:
        names = ["/".join(p[-depth[i] :]) for i, p in enumerate(paths)]
        counts = Counter(names)
        longer = [i for i, p in enumerate(paths) if counts[names[i]] > 1 and depth[i] < len(p)]
        if not longer:
            break
        depth.update({i: depth[i] + 1 for i in longer})
    used: set[str] = set()
    return [claim_name("/".join(map(_shorten, printable(name).split("/"))), used) for name in names]


def _shorten(part: str) -> str:
    """A folder's or file's name; if file systems do not take one so long, its stem is shortened."""
    stem, suffix = os.path.splitext(part)
    room = max(MAX_NAME_BYTES - len(suffix.encode()), 0)
    if len(part.encode()) <= MAX_NAME_BYTES or not room:
        return part.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    return stem.encode()[:room].decode(errors="ignore") + suffix


def claim_name(name: str, used: set[str]) -> str:
    """Claim `name`, or the first of name~2, name~3, ... (before the suffix) that is free, and return it."""
    stem, suffix = os.path.splitext(name)
    choice, number = name, 2
    while choice in used:
        choice, number = f"{stem}~{number}{suffix}", number + 1
    used.add(choice)
    return choice


def _thin(items: list[Still | Clip], max_views: int | None, skips: Skips) -> list[Still | Clip]:
    """An evenly spaced subset of at most `max_views` views; the rest is logged, a clip in one line."""
    flat = [(i, key) for i, item in enumerate(items) for key in (item.frames if isinstance(item, Clip) else [None])]
    if max_views is None or len(flat) <= max_views:
        return items
    kept = {flat[j] for j in evenly(len(flat), max_views)}
    reason = f"{LEFT_OUT} {max_views} views at most (--max-views, --memory)"
    result: list[Still | Clip] = []
    for i, item in enumerate(items):
        if isinstance(item, Still):
            if (i, None) in kept:
                result.append(item)
            else:
                skips.add(item.name, reason)
            continue
        frames = {key: name for key, name in item.frames.items() if (i, key) in kept}
        if len(frames) < len(item.frames):
            skips.add(item.name, f"{len(item.frames) - len(frames)} of {len(item.frames)} frames {reason}")
        if frames:
            result.append(replace(item, frames=frames))
    return result
