"""Files of the Lite3R release: how they are told from others, and their names <-> those of our own files.

The release writes {"model": state dict, "optim": None, "step": int, "extra": {}}. Each of its attention layers has
`proj_lin` and `lam` beside `qkv`, files of the first stage also have `smooth` for every rounded linear layer, and names
of Depth Anything 3 lack the "model." of the published weights. Keep ratio, mode and number format are not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Collection

RELEASE, STEP = "release", "step"  # in the metadata of files
STAGE_1, FINAL = "Lite3R, stage 1", "Lite3R, final stage"
LEFT_OUT = ("point_head", "track_head")  # VGGT's heads that its files lack
_PREFIX = "model."
_OF_RELEASE = re.compile(r"(?:aggregator|camera_head|backbone|cam_enc)\.(?:.*\.)?attn\.(?:proj_lin\.weight|lam)")


def stage_of(names: Collection[str]) -> str | None:
    """The stage of a file with these names, STAGE_1 or FINAL; None if it is not of the release."""
    if not any(_OF_RELEASE.fullmatch(name) for name in names):
        return None
    return STAGE_1 if any(name.endswith(".smooth") for name in names) else FINAL


def is_left_out(official: str | None) -> bool:
    """Whether an official name of VGGT belongs to a head that files of the release lack."""
    return official is not None and official.partition(".")[0] in LEFT_OUT


def our_names(names: Collection[str]) -> dict[str, str]:
    """Name in our own files -> name in a file of the release."""
    prefix = _PREFIX if any(name.startswith("backbone.") for name in names) else ""
    return {prefix + re.sub(r"\.attn\.(proj_lin|lam)\b", r".attn.mechanism.\1", name): name for name in names}


def released_name(name: str) -> str:
    """Name in a file of the release, from the one in our own files."""
    return name.removeprefix(_PREFIX).replace(".attn.mechanism.", ".attn.")
