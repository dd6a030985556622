"""The paper's networks, without exits."""

import eenet._needs_torch  # noqa: F401
from eenet.networks._bert import bert, bert_exits, bert_options, minilm
from eenet.networks._densenet import DenseNet, densenet121
from eenet.networks._hrnet import HRNet, hrnet
from eenet.networks._msdnet import MSDNet, MSDNetHead, msdnet35, msdnet_cifar
from eenet.networks._resnet import CifarResNet, load_published, resnet20, resnet56

__all__ = [
    "CifarResNet",
    "DenseNet",
    "HRNet",
    "MSDNet",
    "MSDNetHead",
    "bert",
    "bert_exits",
    "bert_options",
    "densenet121",
    "hrnet",
    "load_published",
    "minilm",
    "msdnet35",
    "msdnet_cifar",
    "resnet20",
    "resnet56",
]
