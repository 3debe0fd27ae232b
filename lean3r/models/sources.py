"""Where weights come from: a path, a repository on the Hugging Face Hub, or a model's official repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lean3r.errors import UsageError, WeightsError
from lean3r.models import CARDS
from lean3r.models.weight_files import INDEX_SUFFIX, shards_of, weights_in

SCHEME = "hf:"
CANDIDATES = ("model.safetensors", f"model.safetensors{INDEX_SUFFIX}", "model.pt", "model.pth")

VARIANTS = {"facebook/VGGT-1B-Commercial": "VGGT licence (commercial use, not military)"}
"""Repository on the Hub -> licence, for published weights that no model uses by default."""


@dataclass(frozen=True)
class HubSource:
    """A repository, a revision of it (None: the default branch), and a file in it (None: the first candidate)."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Read `hf:OWNER/NAME[/FILE][@REVISION]`; UsageError on any other form."""
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([^@]+))?", text)
        if match is None:
            raise UsageError(
                f"'{text}' is not a source of weights; expected a path or hf:OWNER/NAME[/FILE][@REVISION]."
            )
        repository, file, revision = match.groups()
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

    A cached file is used without a request to the network. Otherwise the file is downloaded with a progress bar into
    the Hub's usual cache (or `cache_dir`); interrupted downloads resume. `token` None uses the token of the last
    login. WeightsError says in one line what to do if the repository, revision, file, permission or network is
    missing.
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
        raise WeightsError(f"{hub} is not in the cache, and offline mode forbids a download. {_by_hand(hub)}.")
    names = hub.file or ", ".join(CANDIDATES)
    raise WeightsError(f"{hub} has no weights file that lean3r can read; expected {names}.")


def official_source(model: str) -> str | None:
    """`hf:...` of a model's official weights, None if it has none."""
    card = CARDS.get(model)
    if card is None or card.repository is None:
        return None
    return f"{SCHEME}{card.repository}" + (f"/{card.file}" if card.file else "")


def licence_of(source: str | Path) -> str | None:
    """The licence of the weights at `hf:OWNER/NAME...`; None if it is unknown, and for local files."""
    if not str(source).startswith(SCHEME):
        return None
    licences = {card.repository: card.licence for card in CARDS.values() if card.repository} | VARIANTS
    repository = HubSource.parse(str(source)).repository.lower()
    return next((licence for name, licence in licences.items() if name.lower() == repository), None)


def _fetch(hub: HubSource, name: str, online: bool, options: dict) -> Path | None:
    """The file's path in the cache, downloaded if `online`; None if there is no such file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with _readable_errors(hub):
        try:
            if online:
                # Without a network this fails at once; the download itself would retry for half a minute.
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
        f"Run `hf download {hub.repository}{revision} --local-dir DIR` on a machine with a network, "
        "then give --weights DIR"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _readable_errors(hub: HubSource) -> Iterator[None]:
    """Turn each error of the Hub into one line that says what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub.repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{hub} requires consent: accept its terms at {page}, then log in with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{hub}: no such repository, or it is private. Check the name, or log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{hub}: the repository has no revision '{hub.revision}'; see {page}/commits/main."
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{hub} is not a valid repository name; expected hf:OWNER/NAME.") from error
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
            f"{hub} could not be downloaded ({_first_line(error)}). Try again: the download resumes."
        ) from error
