"""The masks of an addition: for each view those that came with its picture, by the name that it had there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lean3r.errors import LeanError
from lean3r.grow.album import additions
from lean3r.grow.result import Result
from lean3r.inputs.masks import Masks

logger = logging.getLogger("lean3r")


def masks_of(result: Result, given: Masks | None, new: Mapping[str, str]) -> Masks | None:
    """Masks by the names of views; None if there are none.

    `new` has the names of the new views, and those in their input, by which `given` knows them. Without `given`, the
    scene's own folder may have masks of them, too. Recorded folders that are gone count as empty, with a warning.
    """
    parts = [(each["masks"], each["views"]) for each in additions(result.manifest) if each.get("masks")]
    apart = {name for _, names in parts for name in names}
    own = {name: name for name in result.scene.names if name not in apart}
    first = result.config.get("masks")
    files = {} if given is not None else _recorded(first, {**own, **{name: name for name in new}})
    for folder, names in ((first, own), *parts):
        files |= _recorded(folder, names)
    if given is not None:
        files |= {name: given.files[there] for name, there in new.items() if there in given.files}
    folder = given.folder if given is not None else Path(str(first))
    return Masks(folder, files) if files else None


def _recorded(folder: object, names: Mapping[str, str]) -> dict[str, Path]:
    """The masks in a folder that a result records, by views, whose names there are given."""
    if not isinstance(folder, str) or not names:
        return {}
    if not Path(folder).is_dir():
        logger.warning("the folder of masks %s is gone: pictures that came with it are used whole", folder)
        return {}
    try:
        found = Masks.find(Path(folder), list(names.values())).files
    except LeanError:
        return {}
    return {name: found[there] for name, there in names.items() if there in found}
