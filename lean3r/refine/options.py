"""Options of a refinement, and the known cameras that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lean3r.errors import InputError, UsageError
from lean3r.options import check_types, option

if TYPE_CHECKING:
    import numpy as np

    from lean3r.inputs.pictures import Pictures
    from lean3r.refine.scale import Place
    from lean3r.types import Lens, Reconstruction

Refine = Literal["auto", "on", "off"]
ShareLens = Literal["auto", "always", "never"]
LensName = Literal["auto", "simple-pinhole", "pinhole", "simple-radial", "radial", "opencv"]

SECONDS, SECONDS_A_VIEW = 60.0, 12.0  # of one processor: the limit where none is given
LEAST_SIDE = 64
INTERRUPTED = "interrupted"  # the "reason" in the report of a refinement that Ctrl-C has ended


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """Whether and how to refine.

    `when` is on, off, or auto: the embedded model, on picture files. `seconds` bounds the time (None: 60 seconds of one
    processor and 12 more a view, so that the result does not depend on the load of the machine). `lens` is the
    camera model: "auto" is "simple-radial" (one focal length, one distortion), or for photos "simple-pinhole" where
    they do not show that the lens distorts. `share_lens`: "auto" shares one camera among pictures of equal size and
    EXIF focal length, "always" among those of equal size, "never" not at all.
    Features are found at a size of at most `side` pixels (frames of films: 640), at most `features` a picture.
    """

    when: Refine = option(
        "auto",
        "Refine the cameras by matches and bundle adjustment, and keep the better ones; auto: for nano only.",
        name="refine",
    )
    seconds: float | None = option(
        None,
        "Refine for at most N seconds (default: 60 seconds of processor time, plus 12 for each picture).",
        "N",
        name="refine_seconds",
    )
    lens: LensName = option(
        "auto",
        "Refinement: the camera model; auto: that of --cameras, else simple-radial, or for photos without any "
        "distortion simple-pinhole.",
    )
    share_lens: ShareLens = option(
        "auto", "Refinement: share one camera among pictures of one size; auto: only if their EXIF focal lengths agree."
    )
    side: int = 1600
    features: int = 8192

    def __post_init__(self) -> None:
        check_types(self)
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"refinement got {self.seconds} seconds; expected more than 0, or use --refine off.")
        if self.side < LEAST_SIDE or self.features < 1:
            raise UsageError(f"{self.features} features at {self.side} pixels; expected at least 1 at {LEAST_SIDE}.")
        if self.when == "off" and self.stated is not None:
            raise UsageError(
                f"{self.stated} is of a refinement, and --refine off leaves it out; leave out one of the two."
            )

    @property
    def stated(self) -> str | None:
        """An option that says how to refine, as on the command line; None if all are left to the program."""
        options = {"--refine-seconds": self.seconds, "--lens": self.lens, "--share-lens": self.share_lens}
        given = (f"{flag} {value}" for flag, value in options.items() if value not in (None, "auto"))
        return next(given, None)

    @classmethod
    def of(cls, choice: Refine | RefineOptions) -> RefineOptions:
        """The options for "auto", "on" or "off"; options are returned as they are."""
        return choice if isinstance(choice, RefineOptions) else cls(when=choice)

    def limit(self, views: int) -> float:
        """The time limit for a number of views: seconds on the clock if stated, else of one processor."""
        return SECONDS + SECONDS_A_VIEW * views if self.seconds is None else self.seconds


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """What sets the metric scale: a known distance, or GPS positions; at most one of them. And which way is up."""

    scale: str | None = option(
        None,
        "Scale from a known distance between two cameras in metres, for example IMG_1.jpg,IMG_2.jpg=1.25.",
        "A,B=METRES",
    )
    gps: bool = option(False, "Scale and orientation from the GPS positions in EXIF: x east, y down, z north.")
    positions: Path | None = option(
        None,
        "As --gps, with the positions in a CSV file instead of EXIF: name, lat, lon and perhaps alt.",
        "FILE",
    )
    up: str = option(
        "auto",
        "Which way is up in the world of the result without this option; auto: estimated, or that of --gps.",
        "auto|x|y|z|X,Y,Z",
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.up != "auto":
            from lean3r.geometry.up import parse_up

            parse_up(self.up)
        if self.scale is not None:
            from lean3r.refine.scale import Distance

            Distance.parse(self.scale)
        chosen = [self.scale is not None, self.gps, self.positions is not None]
        given = [name for name, is_given in zip(("--scale", "--gps", "--positions"), chosen, strict=True) if is_given]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} both set the scale; choose one.")
        if self.up != "auto" and (self.gps or self.positions is not None):
            raise UsageError(f"{given[0]} sets which way is up, by the positions; leave out --up.")

    def places(self, pictures: Pictures, names: Sequence[str], *, warn: bool = False) -> dict[str, Place]:
        """The positions of the pictures called `names`, from EXIF or from the table; InputError if that is damaged.
        `warn` of rows for other pictures."""
        from lean3r.refine.positions import read_positions
        from lean3r.refine.scale import read_places

        return (
            read_places(pictures, names) if self.positions is None else read_positions(self.positions, names, warn=warn)
        )

    def check(self, pictures: Pictures) -> list[Place]:
        """The positions that will be used. InputError if the pictures lack them, or a name matches none: before the
        network runs, not after it."""
        from lean3r.refine.scale import Distance, require_places

        if self.scale is not None:
            Distance.parse(self.scale).views(pictures.names)
        if self.gps or self.positions is not None:
            names = pictures.names if self.positions is not None else pictures.file_names
            return require_places(names, self.places(pictures, names, warn=True))
        return []

    def apply(self, reconstruction: Reconstruction, pictures: Pictures) -> Reconstruction:
        """The scene in metres, if that was asked for, with the up direction that was asked for. A scene whose cameras
        give no scale stays as it is, with a warning: nobody should lose it."""
        from lean3r.geometry.up import parse_up, stand_upright, with_up
        from lean3r.refine.scale import Distance, with_distance, with_places
        from lean3r.types import with_warning

        try:
            if self.scale is not None:
                reconstruction = with_distance(reconstruction, Distance.parse(self.scale))
            if self.gps or self.positions is not None:
                reconstruction = with_places(reconstruction, self.places(pictures, reconstruction.names))
        except InputError as error:
            reconstruction = with_warning(reconstruction, "no-scale", f"lengths are not in metres: {error}")
        up = parse_up(self.up)
        return reconstruction if up is None else stand_upright(with_up(reconstruction, up))


@dataclass(frozen=True, eq=False)
class KnownCameras:
    """Known cameras of the S views; NaN or None for a view that has none: intrinsics [S, 3, 3] in pixels of the
    original pictures, which are held fixed; `lenses` [S], whose distortion is held fixed too (else it is estimated);
    cam_from_world [S, 4, 4], which set the world of the result. `are_fixed`: whether these poses are held fixed, or
    only the start of the adjustment."""

    intrinsics: np.ndarray | None = None
    lenses: tuple[Lens | None, ...] = ()
    cam_from_world: np.ndarray | None = None
    are_fixed: bool = True

    def has_pose(self, views: int) -> np.ndarray:
        """Which of the views have known poses [S] bool."""
        import numpy as np

        poses = self.cam_from_world
        return np.zeros(views, bool) if poses is None else np.asarray(np.isfinite(poses).all((1, 2)))
