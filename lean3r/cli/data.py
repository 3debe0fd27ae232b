"""`lean3r data`: list the data sets for training, check a copy of one, or pack it into shards."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import Json, Quiet, Verbose, option
from lean3r.errors import InputError, UsageError
from lean3r.scratch import atomic_file

if TYPE_CHECKING:
    from lean3r.data.sets.roots import Report

_SHOWN = 20
_PLAIN_COLUMNS = 200
_MARK = ("Software", "lean3r data check")  # metadata of a sample, so that only samples are overwritten


@dataclass
class Data:
    """Check a copy of a data set and draw a sample of it, list the sets, or pack one into shards.

    See docs/how-to/data-sets.md.
    """

    what: Annotated[tyro.conf.Positional[Literal["check", "list", "pack"]], option()]
    """What to do."""

    root: Annotated[tyro.conf.Positional[Path | None], option("[ROOT]")] = None
    """Folder of the data set, for check and pack."""

    set: Annotated[str | None, option("NAME")] = None
    """Name of the set; by default it is recognised by its layout."""

    options: Annotated[tyro.conf.UseAppendAction[list[str]], option("KEY=VALUE")] = field(default_factory=list)
    """A setting of the set, such as depth=FOLDER for colmap; may be repeated."""

    out: Annotated[Path | None, option("PATH", "-o")] = None
    """check: the .png file for a sample (default: SET-sample.png in this folder); pack: the folder for the shards."""

    scene: Annotated[int, option("N")] = 0
    """check: the scene to draw, from 0."""

    views: Annotated[tuple[int, int] | None, option("A B")] = None
    """check: the two views to draw, from 0; by default two that overlap."""

    max_side: Annotated[int | None, option("PIXELS")] = None
    """pack: scale pictures down so that no side is longer; by default they keep their size."""

    shard_mb: Annotated[int, option("MB")] = 500
    """pack: size of a shard."""

    scene_views: Annotated[int, option("N")] = 64
    """pack: split longer scenes into parts of this many views."""

    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Check, list or pack; InputError (exit code 3) if the folder is missing or has problems."""
        if self.what == "list":
            if self.root is not None:
                raise UsageError(f"list takes no folder; to check one: lean3r data check {self.root}")
            _list(self.json)
            return
        if self.root is None:
            raise UsageError(f"{self.what} needs the folder of a data set: lean3r data {self.what} ROOT")
        self._check(self.root) if self.what == "check" else self._pack(self.root)

    def _check(self, root: Path) -> None:
        from lean3r.data.sets.roots import options_of, report

        console = Console(self.quiet)
        result = report(root, self.set, options_of(self.options))
        values = result.as_dict()
        console.line("set", f"{values['title']} ({result.name}), licence: {values['licence']}")
        picture = self._draw(result)
        values["picture"] = None if picture is None else str(picture)
        more = "" if result.looked >= result.scenes else f" in the first {result.looked:,}"
        console.line("scenes", f"{result.scenes:,}, {result.views:,} views{more}")
        for problem in result.problems[:_SHOWN]:
            console.warn(problem)
        if len(result.problems) > _SHOWN:
            console.warn(f"and {len(result.problems) - _SHOWN:,} more problems; --json lists all")
        if self.json:
            print(json.dumps(values))
        elif picture is not None:
            print(picture)
        if result.problems:
            count = len(result.problems)
            usable = f"{result.scenes or 'no'} scene{'' if result.scenes < 2 else 's'} can be used"
            raise InputError(f"{count} problem{'s' if count > 1 else ''} in {root}; {usable}")

    def _draw(self, report: Report) -> Path | None:
        """Draw two views of a scene and return the file; None if nothing can be drawn."""
        import numpy as np
        from PIL.PngImagePlugin import PngInfo

        from lean3r.cli.data_picture import draw
        from lean3r.data.sampling.choosing import AUTO, Chooser

        scenes = report.opened
        if scenes is None:
            return None
        if not 0 <= self.scene < len(scenes):
            raise UsageError(f"--scene is {self.scene}; expected 0 to {len(scenes) - 1}.")
        path = self.out or Path(f"{report.name}-sample.png")
        if path.suffix.lower() != ".png" or (path.exists() and not _is_sample(path)):
            what = "was not written by data check, so it is not replaced" if path.exists() else "is not a .png"
            raise UsageError(f"{path} {what}; name another file with -o.")
        try:
            info = scenes.scene(self.scene)
            rng = np.random.default_rng(0)
            one, other = self.views or Chooser(scenes, AUTO).choose(rng, self.scene, 2)
            if not 0 <= min(one, other) <= max(one, other) < info.views:
                raise UsageError(
                    f"--views is {one} {other}; expected numbers from 0 to {info.views - 1} for scene {info.id}."
                )
            name = report.root.resolve().name if info.id == "." else info.id
            title = f"{report.name}  {name}  views {one} and {other}"
            title += f"; right: {one} as {other} sees it" if scenes.has_poses else ""
            views = scenes.view(self.scene, one), scenes.view(self.scene, other)
            sheet = draw(*views, title, is_posed=scenes.has_poses)
        except InputError as error:
            report.problems.append(f"no picture of scene {self.scene}: {error}")
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        about = PngInfo()
        about.add_text(*_MARK)
        with atomic_file(path) as part:
            sheet.save(part, "PNG", pnginfo=about)
        return path

    def _pack(self, root: Path) -> None:
        from lean3r.data.sets.roots import kind_of, open_set, options_of
        from lean3r.data.sets.shards import pack
        from lean3r.export.atomic import atomic_folder

        if self.out is None:
            raise UsageError(f"pack needs a folder to write to: lean3r data pack {root} -o DIR")
        console = Console(self.quiet)
        name = kind_of(root, self.set)
        scenes = open_set(name, root, options_of(self.options))
        with console.stage("packing"), atomic_folder(self.out) as folder:
            index = pack(scenes, folder, max_side=self.max_side, shard_mb=self.shard_mb, scene_views=self.scene_views)
        for problem in index["skipped"]:
            console.warn(f"left out: {problem}")
        console.line("packed", f"{len(index['scenes']):,} scenes in {len(index['shards']):,} shards")
        print(json.dumps({k: v for k, v in index.items() if k != "scenes"}) if self.json else self.out)


def _is_sample(path: Path) -> bool:
    """Whether a file is a sample written by `data check`."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _list(as_json: bool) -> None:
    """Print the table of data sets, or JSON."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as Terminal
    from rich.table import Table

    from lean3r.data.sets.roots import sets

    rows = [
        {
            "name": name,
            "title": kind.title,
            "depth": kind.has_depth,
            "is_metric": kind.is_metric,
            "licence": kind.licence,
            "source": kind.source,
            "layout": kind.layout,
        }
        for name, kind in sets().items()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "depth", "metres", "licence", "where to get it"):
        table.add_column(column, overflow="fold")
    for row in rows:
        depth, metric = ("yes" if row[key] else "no" for key in ("depth", "is_metric"))
        table.add_row(row["name"], depth, metric, row["licence"], row["source"])
    Terminal(width=None if sys.stdout.isatty() else _PLAIN_COLUMNS, highlight=False).print(table)
