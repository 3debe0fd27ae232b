"""Options of the service: where it listens, who may ask, and how much a job may take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lean3r.errors import UsageError
from lean3r.models import MODELS, model_of
from lean3r.options import check_types, option

HERE = ("127.0.0.1", "localhost", "::1")
AUTO = "auto"
LEAST_TOKEN = 16  # characters: shorter ones can be guessed
GIGABYTE = 10**9
_NAME = re.compile(r"[a-z0-9.-]+|[0-9a-f:]*:[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)  # of a machine, or IPv6


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of `lean3r serve`.

    `token` is the secret that callers need ("auto" makes one); another `host` than this machine's own names needs one,
    or `insecure`. `names` are further names under which browsers may reach the service. `models` are those that jobs
    may ask for. `minutes` and `memory_gb` limit a job, `upload_gb` and `upload_files` an upload, `quota_gb` everything
    that is kept, of which `reserve_gb` of the disk stay free.
    """

    host: str = option("127.0.0.1", "Address to listen at; other than this machine's own it needs a token.", "ADDRESS")
    port: int = option(8400, "Port to listen at; 0: a free one, which is printed.", "N")
    token: str | None = option(
        None, "Secret that every caller must give; auto: make one, and print it once.", "TEXT|auto"
    )
    token_file: Path | None = option(
        None, "File with the secret: unlike --token, other users of the machine do not see it.", "FILE"
    )
    insecure: bool = option(False, "Let everybody in who reaches the address, without a token.")
    names: str = option(
        "", "Further names under which browsers reach the service, behind a proxy for example.", "NAME[,NAME ...]"
    )
    models: str = option("nano,nano-gsa-fp8", "The models that jobs may ask for.", "NAME[,NAME ...]")
    devices: str = option(
        AUTO, "One worker for each of these: auto, cpu, cuda, mps, or cuda:0,cuda:1, ...", "NAME[,NAME ...]"
    )
    workers: int = option(1, "How many workers to keep on a Ray cluster (--engine ray).", "N")
    minutes: float = option(30.0, "End a job after N minutes.", "N")
    memory_gb: float | None = option(
        None, "End a job that takes more than N gigabytes of main memory (default: 80 % of the machine's).", "N"
    )
    attempts: int = option(3, "Start a job again that lost its worker or the service, at most N times in all.", "N")
    queue: int = option(100, "Refuse uploads while N jobs wait.", "N")
    upload_gb: float = option(2.0, "Refuse uploads of more than N gigabytes.", "N")
    upload_files: int = option(1000, "Refuse uploads of more than N files, and archives of more than N members.", "N")
    quota_gb: float = option(
        20.0, "Keep at most N gigabytes: the oldest results are removed to make room for new uploads.", "N"
    )
    reserve_gb: float = option(1.0, "Refuse uploads when less than N gigabytes of the disk are free.", "N")
    keep_hours: float = option(72.0, "Remove results N hours after their jobs ended.", "N")

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port is {self.port}; expected 0 to 65535.")
        positive = (
            "workers",
            "minutes",
            "memory_gb",
            "attempts",
            "queue",
            "upload_gb",
            "upload_files",
            "quota_gb",
            "keep_hours",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"--{name.replace('_', '-')} is {value}; expected more than 0.")
        if not 0 <= self.reserve_gb < float("inf"):
            raise UsageError(f"--reserve-gb is {self.reserve_gb}; expected 0 or more.")
        for name in self.model_names:
            MODELS.check(model_of(name))
        if not self.model_names or not self.device_names:
            raise UsageError("--models and --devices name nothing; expected at least one of each, or leave them out.")
        for name in _parts(self.names):
            if not _NAME.fullmatch(name):
                raise UsageError(
                    f"--names has '{name}'; expected names as in scan.example, without https:// and without a port."
                )
        self._check_secret()

    def _check_secret(self) -> None:
        secrets = [self.token is not None, self.token_file is not None, self.insecure]
        if sum(secrets) > 1:
            raise UsageError("--token, --token-file and --insecure contradict each other; give one of them.")
        if self.host not in HERE and not any(secrets):
            raise UsageError(
                f"--host {self.host} lets other machines in; expected --token auto, --token-file FILE, or --insecure."
            )
        if self.token not in (None, AUTO):
            check_token(self.token, "--token")

    @property
    def model_names(self) -> Sequence[str]:
        """The models that jobs may ask for."""
        return _parts(self.models)

    @property
    def device_names(self) -> Sequence[str]:
        """The devices, each once."""
        return tuple(dict.fromkeys(_parts(self.devices)))

    @property
    def host_names(self) -> Sequence[str]:
        """The names, without ports and in lower case, that a Host header may have."""
        own = [*HERE, self.host, *_parts(self.names)]
        return tuple(name.lower() for name in own if name not in ("0.0.0.0", "::"))


def check_token(token: str, place: str) -> None:
    """Raise UsageError if a token is too short, or cannot stand in a header."""
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{place} has {len(token)} characters; expected at least {LEAST_TOKEN} of ASCII without blanks, or auto."
        )


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
