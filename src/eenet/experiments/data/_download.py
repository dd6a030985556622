"""Fetching published data, only when asked to, and only through the Hugging Face hub's own library."""

from __future__ import annotations

from pathlib import Path

from eenet._extras import require
from eenet.errors import InvalidInputError

REPOSITORIES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "sst2": "stanfordnlp/sst2",
    "ag_news": "fancyzhx/ag_news",
}
_ACCOUNTS = {
    "imagenet": "ImageNet asks for an account: download ILSVRC2012 from https://image-net.org and unpack it into "
    "train/<synset> and val/<synset>",
    "cityscapes": "Cityscapes asks for an account: download leftImg8bit_trainvaltest and gtFine_trainvaltest from "
    "https://www.cityscapes-dataset.com and unpack both into one folder",
}


def remedy(name: str) -> str:
    """What to do when the data is missing."""
    if name in REPOSITORIES:
        return (
            f"Give the right root, or fetch Hugging Face's {REPOSITORIES[name]} with download=True where there is a "
            "network"
        )
    return f"Give the right root. {_ACCOUNTS[name]}" if name in _ACCOUNTS else "Give the right root"


def download(name: str, root: Path) -> None:
    """Fetch the parquet files of a dataset into `root/name`; raises `InvalidInputError` where that cannot be done."""
    if name not in REPOSITORIES:
        raise InvalidInputError(f"{name!r} cannot be downloaded. {remedy(name)}")
    hub = require("huggingface_hub", "train", "downloading data")
    repository = REPOSITORIES[name]
    try:
        hub.snapshot_download(repository, repo_type="dataset", allow_patterns=["*.parquet"], local_dir=str(root / name))
    except (OSError, hub.errors.HfHubHTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"cannot download {repository!r} into {str(root / name)!r} ({reason}); fetch it on a machine that has a "
            "network, copy the folder here and give it as root"
        ) from error
