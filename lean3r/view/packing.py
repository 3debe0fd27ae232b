"""A result as a header, JSON-ready, and named parts, bytes, which stand in a page or are fetched by it."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from lean3r.export.depth import PALETTE, colourise
from lean3r.view import chunks
from lean3r.view.content import REGISTRATIONS, Content, Points, Surface
from lean3r.view.frame import Frame, frame_of, home

THUMB, QUALITY, SMALL_QUALITY = 112, 84, 72
LARGEST = 720  # longer side of a picture on a page that is served
PICTURE_BYTES = 2_200_000  # for all pictures on a page that is one file
PICTURES = ("photo", "depth", "conf")
TRIED, TRIAL = 4, 192  # views and pixels by which their size is chosen
SMALLEST = 96
FARTHEST = 1e5  # times the size of the scene
MOST_THUMBS = 2000
MOST_TRIANGLES = 200_000  # triangles of a mesh on a page that is one file


class Package:
    """What a page shows of one result; `header` and `part` are all that leaves it.

    `world` is the number, on the page, of the result in whose world `frame` shows it. `most` limits its points (None:
    all). In one file pictures are small enough for a few megabytes in all.
    """

    def __init__(
        self,
        content: Content,
        frame: Frame | None = None,
        world: int = 0,
        *,
        most: int | None = None,
        in_one_file: bool = False,
    ) -> None:
        self.content, self.world, self.most, self.in_one_file = content, world, most, in_one_file
        self.frame = frame or frame_of(content)
        self.notes: list[str] = list(content.notes)

    @cached_property
    def points(self) -> chunks.Packed:
        """The cloud, thinned and packed."""
        points, self._dropped = self._visible(self.content.points)
        kept = points if self.most is None else chunks.thinned(points, self.most)
        spacing = self._spacing(points, kept)
        placed = Points(self.frame.place(kept.xyz), kept.rgb, kept.conf, kept.normals @ self._turn.T, kept.view)
        return chunks.pack(placed, spacing)

    def _visible(self, points: Points) -> tuple[Points, int]:
        """The points that have a place near enough to be drawn, and how many have none."""
        with np.errstate(invalid="ignore", over="ignore"):
            reach = np.abs(points.xyz.astype(np.float64) - self.frame.centre).max(axis=1, initial=0) / self.frame.unit
        is_sound = np.asarray((reach < FARTHEST) & np.isfinite(points.conf))
        missing = int((~is_sound).sum())
        return (points[is_sound] if missing else points), missing

    @property
    def _turn(self) -> np.ndarray:
        return self.frame.rotation.astype(np.float32)

    def _spacing(self, points: Points, kept: Points) -> np.ndarray:
        """Distance [P] of the kept points to their neighbours, in the page's unit; 0 where unknown."""
        if not self.content.cameras or not len(points) or (points.view < 0).all():
            return np.zeros(len(kept), np.float32)
        poses = np.stack([camera.pose[2] for camera in self.content.cameras])
        sides = np.array([camera.footprint for camera in self.content.cameras])

        def of(some: Points) -> np.ndarray:
            view = some.view.clip(0, len(sides) - 1)
            depth = np.einsum("pc,pc->p", some.xyz.astype(np.float64), poses[view, :3]) + poses[view, 3]
            # Pixels are farther apart on a surface seen at a grazing angle; one of unknown normal faces the camera.
            slant = np.abs(np.einsum("pc,pc->p", some.normals, poses[view, :3].astype(np.float32)))
            slant[~some.normals.any(axis=1)] = 1
            spacing = depth * sides[view] / np.sqrt(slant.clip(0.15, 1))
            return np.where((some.view >= 0) & (depth > 0), spacing, 0)

        factor = chunks.calibration(points.xyz, of(points)) * np.sqrt(max(len(points), 1) / max(len(kept), 1))
        return (of(kept) * factor / self.frame.unit).astype(np.float32)

    @cached_property
    def header(self) -> dict:
        """Everything but the bytes."""
        packed, content = self.points, self.content
        notes = list(self.notes)
        if self._dropped:
            notes.append(f"{self._dropped:,} points are left out: they are no numbers, or extremely far away.")
        surface = self._surface()
        if surface is None and content.surface is not None:
            notes.append("The mesh is too large for a page in one file; `lean3r view` without --html shows it.")
        return {
            "title": content.title,
            "scale": content.scale,
            "unit": self.frame.unit,
            "world": self.world,
            "isDone": content.is_done,
            "points": {
                "count": packed.count,
                "total": len(content.points),
                "chunks": packed.chunks,
                "levels": chunks.LEVELS if packed.count else 0,
                "spacing": packed.spacing,
                "quantiles": packed.quantiles,
                "hasViews": bool((content.points.view >= 0).any()),
                "hasNormals": bool(content.points.normals.any()),
            },
            "cameras": [self._camera(view) for view in range(len(content.cameras))],
            "registrations": REGISTRATIONS,
            "mesh": None if surface is None else {"vertices": len(surface.xyz), "triangles": len(surface.faces)},
            "home": home(content, self.frame),
            "facts": content.facts,
            "notes": notes,
            "palette": PALETTE[::8].ravel().tolist(),
        }

    def _camera(self, view: int) -> dict:
        camera = self.content.cameras[view]
        return {
            "name": camera.source.name,
            "width": camera.source.width,
            "height": camera.source.height,
            "pose": _rounded(self.frame.pose(camera.pose)[:3].ravel(), 9),
            "rays": _rounded(camera.rays.ravel(), 6),
            "cells": len(camera.rays) - 1,
            "registration": camera.registration,
            "time": camera.source.timestamp_s,
        }

    @cached_property
    def side(self) -> int:
        """Longer side of the pictures, in pixels; in one file as large as a sample says that all have room."""
        views = len(self.content.cameras)
        if not self.in_one_file or not views:
            return LARGEST
        sample = range(0, views, -(-views // TRIED))
        tried = sum(len(self._picture(kind, view, TRIAL)) for view in sample for kind in PICTURES) / len(sample)
        return int(np.clip(TRIAL * np.sqrt(PICTURE_BYTES / views / max(tried, 1.0)), SMALLEST, LARGEST))

    @cached_property
    def _thumbs(self) -> bytes:
        """A small JPEG of each view, empty where there is none, after their number and their lengths (uint32). Not in
        the header: a page of a thousand views need not wait for their pictures."""
        found = []
        for view in range(len(self.content.cameras)):
            picture = self.content.album.photo(view, THUMB) if view < MOST_THUMBS else None
            found.append(b"" if picture is None else jpeg(picture, THUMB, SMALL_QUALITY))
        return np.array([len(found), *map(len, found)], "<u4").tobytes() + b"".join(found)

    def part(self, name: str) -> bytes:
        """The bytes of a part: points-0 ... (coarse first), mesh, thumbs, photo-V, depth-V, conf-V of view V (empty if
        there is no such picture). KeyError for any other name."""
        kind, _, number = name.partition("-")
        if kind in ("mesh", "thumbs") and not number:
            return self._thumbs if kind == "thumbs" else self._mesh_bytes
        if not (number.isascii() and number.isdigit()) or kind not in ("points", *PICTURES):
            raise KeyError(name)
        if int(number) >= (chunks.LEVELS if kind == "points" else len(self.content.cameras)):
            raise KeyError(name)
        return self.points.levels[int(number)] if kind == "points" else self._picture(kind, int(number), self.side)

    def names(self) -> list[str]:
        """The parts that a page in one file holds; most important first."""
        header = self.header
        names = [f"points-{level}" for level in range(header["points"]["levels"])]
        names += ["mesh"] if header["mesh"] else []
        views = range(len(header["cameras"]))
        return [*names, "thumbs", *(f"{kind}-{view}" for kind in PICTURES for view in views)]

    def _picture(self, kind: str, view: int, side: int) -> bytes:
        album = self.content.album
        if kind == "photo":
            picture = album.photo(view, side)
            return b"" if picture is None else jpeg(picture, side, QUALITY)
        values = album.depth(view) if kind == "depth" else album.conf(view)
        if values is None or not values.any():
            return b""
        colours = colourise(values) if kind == "depth" else self._conf_colours(values)
        return jpeg(Image.fromarray(colours), side, SMALL_QUALITY)

    def _conf_colours(self, values: np.ndarray) -> np.ndarray:
        """Confidence [H, W] in the colours of its rank among all points; black where there is none."""
        quantiles = np.asarray(self.points.quantiles or [0, 1])
        rank = np.interp(values, quantiles, np.linspace(0, 1, len(quantiles)))
        return np.where(values[..., None] > 0, PALETTE[(rank * 255).astype(np.uint8)], 0).astype(np.uint8)

    def _surface(self) -> Surface | None:
        surface = self.content.surface
        if surface is None or not len(surface.faces):
            return None
        return None if self.in_one_file and len(surface.faces) > MOST_TRIANGLES else surface

    @cached_property
    def _mesh_bytes(self) -> bytes:
        """Vertices as float32 [V, 3], colours uint8 [V, 3], corners of the faces as differences int32 [F, 3]."""
        surface = self._surface()
        if surface is None:
            return b""
        xyz = self.frame.place(surface.xyz).astype(np.float32)
        corners = np.diff(surface.faces.astype(np.int32).ravel(), prepend=np.int32(0))
        planes = [np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T) for values in (xyz.ravel(), corners)]
        return gzip.compress(planes[0].tobytes() + surface.rgb.tobytes() + planes[1].tobytes(), 6, mtime=0)


def jpeg(picture: Image.Image, side: int, quality: int) -> bytes:
    """A picture as a JPEG, its longer side at most `side` pixels."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def _rounded(values: np.ndarray, digits: int) -> Sequence[float]:
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
