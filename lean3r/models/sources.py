"""Where weights come from: a path, a repository on the Hugging Face Hub, or a model's official repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lean3r.errors import UsageError, WeightsError
from lean3r.models.stored import INDEX_SUFFIX, shards_of, weights_in

SCHEME = "hf:"
CANDIDATES = ("model.safetensors", f"model.safetensors{INDEX_SUFFIX}", "model.pt", "model.pth")

NON_COMMERCIAL = "CC-BY-NC-4.0"
APACHE = "Apache-2.0"


@dataclass(frozen=True)
class Published:
    """Weights on the Hub: repository, licence of the weights (not of the code), and where the authors state it."""

    repository: str
    licence: str
    stated: str


_VGGT = "https://github.com/facebookresearch/vggt#updates"
_PI3 = "https://github.com/yyfz/Pi3#license"
_SPEED3R = "https://github.com/Visual-AI/speed3r#license"
_DA3 = "https://github.com/ByteDance-Seed/Depth-Anything-3#model-cards"

OFFICIAL = {
    "vggt": Published("facebook/VGGT-1B", NON_COMMERCIAL, _VGGT),
    "pi3": Published("yyfz233/Pi3", NON_COMMERCIAL, _PI3),
    "pi3x": Published("yyfz233/Pi3X", NON_COMMERCIAL, _PI3),
    "speed3r-pi3": Published("weining17/Speed3R_Pi3", NON_COMMERCIAL, _SPEED3R),
    "da3-small": Published("depth-anything/DA3-SMALL", APACHE, _DA3),
    "da3-base": Published("depth-anything/DA3-BASE", APACHE, _DA3),
    "da3-large": Published("depth-anything/DA3-LARGE-1.1", NON_COMMERCIAL, _DA3),
    "da3-giant": Published("depth-anything/DA3-GIANT-1.1", NON_COMMERCIAL, _DA3),
    "da3mono-large": Published("depth-anything/DA3MONO-LARGE", APACHE, _DA3),
    "da3metric-large": Published("depth-anything/DA3METRIC-LARGE", APACHE, _DA3),
    "da3nested-giant-large": Published("depth-anything/DA3NESTED-GIANT-LARGE-1.1", NON_COMMERCIAL, _DA3),
}
"""Model name -> its authors' weights."""

VARIANTS = (Published("facebook/VGGT-1B-Commercial", "VGGT licence (commercial use, not military)", _VGGT),)
"""Weights that fit a model of the table and have another licence than its own."""


@dataclass(frozen=True)
class HubSource:
    """A repository, a revision of it (None: the default branch), and a file in it (None: the first candidate)."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Read `hf:OWNER/NAME[/FILE][@REVISION]`; UsageError when it has another form."""
        found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([^@]+))?", text)
        if found is None:
            raise UsageError(f"'{text}' is no weights source; expected a path, or hf:OWNER/NAME[/FILE][@REVISION].")
        repository, file, revision = found.groups()
        return cls(repository, revision, file)

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{SCHEME}{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


def find_weights(
    source: str | Path,
    *,
    offline: bool = False,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """A local file of weights: `source` itself, the one file of a folder, or those of `hf:OWNER/NAME[@REVISION]`.

    What the cache holds is used without asking the network; otherwise the file is downloaded with a progress bar
    into the Hub's usual cache (or `cache_dir`), interrupted downloads going on where they stopped. `token` None
    takes the one that was logged in. WeightsError says in one line what to do when the repository, revision,
    file, permission or network is missing.
    """
    if not str(source).startswith(SCHEME):
        path = Path(source)
        return weights_in(path) if path.is_dir() else path
    hub = HubSource.parse(str(source))
    options = {"cache_dir": cache_dir, "endpoint": endpoint, "token": token}
    for online in (False,) if offline else (False, True):
        for name in (hub.file,) if hub.file else CANDIDATES:
            path = _fetch(hub, name, online, options)
            if path is None:
                continue
            if not name.endswith(INDEX_SUFFIX) or all(
                [_fetch(hub, s, online, options) for s in sorted(set(shards_of(path).values()))]
            ):
                return path
    if offline:
        raise WeightsError(f"{hub} is not in the cache, and offline mode asks for no network. {_by_hand(hub)}.")
    wanted = hub.file or ", ".join(CANDIDATES)
    raise WeightsError(f"{hub} holds no weights file that lean3r reads ({wanted}).")


def official_source(model: str) -> str | None:
    """`hf:...` of a model's official weights, None when it has none."""
    return f"{SCHEME}{OFFICIAL[model].repository}" if model in OFFICIAL else None


def licence_of(source: str | Path) -> str | None:
    """The licence of the weights at `hf:OWNER/NAME...` where it is known; None for others and for local files."""
    if not str(source).startswith(SCHEME):
        return None
    repository = HubSource.parse(str(source)).repository.lower()
    known = (*OFFICIAL.values(), *VARIANTS)
    return next((found.licence for found in known if found.repository.lower() == repository), None)


def is_non_commercial(licence: str) -> bool:
    """Whether a licence, by its SPDX name, forbids commercial use."""
    return "NC" in licence.split("-")


def _fetch(hub: HubSource, name: str, online: bool, options: dict) -> Path | None:
    """The file's path in the cache, downloaded if `online`; None when it is not there."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _readable_errors(hub):
        try:
            if online:
                # Where there is no network, this says so at once; the download itself retries for half a minute.
                url = hf_hub_url(hub.repository, name, revision=hub.revision, endpoint=options["endpoint"])
                get_hf_file_metadata(url, token=options["token"], endpoint=options["endpoint"])
            return Path(
                hf_hub_download(hub.repository, name, revision=hub.revision, local_files_only=not online, **options)
            )
        except LocalEntryNotFoundError:
            if online:
                raise
        except EntryNotFoundError:
            pass
    return None


def _by_hand(hub: HubSource) -> str:
    revision = f" --revision {hub.revision}" if hub.revision else ""
    return (
        f"Run `hf download {hub.repository}{revision} --local-dir DIR` where there is a network, "
        "then give --weights DIR"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _readable_errors(hub: HubSource) -> Iterator[None]:
    """Turn the Hub's errors into one line each that says what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub.repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{hub} asks for consent: accept its terms at {page}, then log in with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{hub}: no such repository, or a private one; for that log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{hub}: the repository has no revision '{hub.revision}'; see {page}/commits/main."
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{hub} is no valid repository name.") from error
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    ) as error:
        if isinstance(error, errors.HfHubHTTPError):
            raise WeightsError(
                f"{hub}: the Hub answered with an error ({_first_line(error)}). Try again later."
            ) from error
        raise WeightsError(f"{hub} is not in the cache, and the Hub cannot be reached. {_by_hand(hub)}.") from error
    except OSError as error:
        raise WeightsError(
            f"{hub} could not be downloaded ({_first_line(error)}). Try again, it goes on where it stopped."
        ) from error
