"""The versions of installed packages, RLX's own among them."""

from __future__ import annotations

from importlib import metadata


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def rlx_version() -> str:
    """The version of RLX, or what it is if it is run without being installed."""
    return installed_version("rlx") or "from a source tree"
