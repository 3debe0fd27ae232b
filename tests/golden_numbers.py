"""Where the golden numbers are: numbers of the official programs, for tests/golden."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parent / "golden" / "shipped.tar.xz"
UNPACKED = pytest.StashKey[Path]()


def golden_folder(config: pytest.Config) -> Path:
    """Folder of golden numbers: the one of --golden, ../shared/golden, or the cases that are shipped, unpacked."""
    if config.getoption("--golden"):
        folder = folder_option(config, "--golden")
        if not folder.is_dir():
            raise pytest.UsageError(f"no golden numbers at {folder}: name their folder with --golden DIR")
        return folder
    if (shared := config.rootpath.parent / "shared" / "golden").is_dir():
        return shared
    if UNPACKED not in config.stash:
        folder = tempfile.TemporaryDirectory(prefix="golden-")
        config.add_cleanup(folder.cleanup)
        with tarfile.open(SHIPPED) as archive:
            archive.extractall(folder.name, filter="data")
        config.stash[UNPACKED] = Path(folder.name)
    return config.stash[UNPACKED]


def folder_option(config: pytest.Config, option: str) -> Path:
    """Folder named by a command line option, relative to the root of the repository."""
    return (config.rootpath / config.getoption(option)).resolve()
