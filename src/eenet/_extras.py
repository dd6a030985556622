"""Importing what an optional extra brings, with an error that names the extra."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

from eenet.errors import MissingExtraError

_NO_OPERATOR = "operator torchvision::nms does not exist"


def require(module: str, extra: str, purpose: str = "this") -> Any:
    """Import a module of an optional dependency, for a purpose that the error names.

    Raises `MissingExtraError` with the command that installs it, where it is missing or cannot be imported.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"{purpose} needs {package}, which is not installed: {install(extra)}")
    with importing(package, extra, purpose):
        return importlib.import_module(module)


@contextmanager
def importing(package: str, extra: str, purpose: str = "this") -> Iterator[None]:
    """Raise `MissingExtraError` where a package, or a part of it that it loads late, cannot be imported inside."""
    with warnings.catch_warnings():
        # What a library says of itself while it loads is not about the caller's work.
        warnings.simplefilter("ignore")
        try:
            yield
        except (ImportError, RuntimeError) as error:
            if _is_of_torchvision(error):
                raise MissingExtraError(f"{purpose} needs {package}, which cannot be imported: {_builds()}") from error
            if not isinstance(error, ImportError):
                raise
            raise MissingExtraError(
                f"{purpose} needs {package}, which cannot be imported ({error}); {install(extra)}"
            ) from error


def install(extra: str) -> str:
    """The command that installs an extra, from where eenet itself came: a clone, a file, or a package index."""
    try:
        text = metadata.distribution("eenet").read_text("direct_url.json")  # PEP 610: not of packages from an index
    except metadata.PackageNotFoundError:
        return f"pip install '.[{extra}]' in a clone of eenet"
    if text is None:
        return f"pip install 'eenet[{extra}]'"
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    source = json.loads(text)
    if "dir_info" in source:
        return f"pip install '{url2pathname(urlsplit(source['url']).path)}[{extra}]'"
    system = f"{source['vcs_info']['vcs']}+" if "vcs_info" in source else ""
    return f"pip install 'eenet[{extra}] @ {system}{source['url']}'"


def _is_of_torchvision(error: BaseException | None) -> bool:
    """Whether an error comes from a torchvision whose compiled operators do not load into this torch."""
    while error is not None and _NO_OPERATOR not in str(error):
        error = error.__cause__ or error.__context__
    return error is not None


def _builds() -> str:
    """What does not fit where torchvision's operators do not load, and the way out."""
    return (
        f"torch {_version('torch')} and torchvision {_version('torchvision')} are different builds ({_NO_OPERATOR}). "
        "Install both from the same package index, such as PyTorch's index for CPUs: "
        "pip install --force-reinstall torch torchvision; or uninstall torchvision, where nothing needs it"
    )


def _version(distribution: str) -> str:
    """The installed version of a distribution, or "?" of one that says none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "?"


def require_extra(extra: str, purpose: str) -> None:
    """Check that all packages of an extra are installed, before anything is done for a purpose that the error names.

    Raises `MissingExtraError`, which names what is missing and the command that installs it. Where eenet itself is not
    installed (a checkout on the path) nothing is known of its extras, and nothing is checked.
    """
    missing = missing_of(extra)
    if missing:
        raise MissingExtraError(f"{purpose} needs {', '.join(missing)}, not installed here: {install(extra)}")


def missing_of(extra: str) -> list[str]:
    """The distributions that are not installed of an extra and of those it names; none where nothing is known of it."""
    return sorted(_missing(extra, set()))


def _missing(extra: str, seen: set[str]) -> set[str]:
    """The distributions of an extra, and of the extras it names, that are not installed."""
    seen.add(extra)
    try:
        requirements = metadata.requires("eenet") or []
    except metadata.PackageNotFoundError:
        return set()
    missing: set[str] = set()
    for requirement in requirements:
        needed, _, marker = requirement.partition(";")
        if not re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker) or "sys_platform" in marker:
            continue  # of another extra, or not for every platform
        name, inner = re.fullmatch(r"\s*([\w.-]+)(?:\[([\w,\s-]+)\])?.*", needed).groups()  # type: ignore[union-attr]
        if name == "eenet":
            for other in {part.strip() for part in inner.split(",")} - seen:
                missing |= _missing(other, seen)
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.add(name)
    return missing
