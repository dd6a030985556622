"""The paper's networks, without exits."""

import eenet._needs_torch  # noqa: F401
from eenet.networks._bert import bert, minilm
from eenet.networks._bert import bert_exits as bert_exits
from eenet.networks._bert import bert_options as bert_options
from eenet.networks._densenet import DenseNet as DenseNet
from eenet.networks._densenet import densenet121
from eenet.networks._hrnet import HRNet as HRNet
from eenet.networks._hrnet import hrnet
from eenet.networks._msdnet import MSDNet as MSDNet
from eenet.networks._msdnet import MSDNetHead as MSDNetHead
from eenet.networks._msdnet import msdnet35, msdnet_cifar
from eenet.networks._resnet import CifarResNet as CifarResNet
from eenet.networks._resnet import load_published, resnet20, resnet56

__all__ = [
    "bert",
    "densenet121",
    "hrnet",
    "load_published",
    "minilm",
    "msdnet35",
    "msdnet_cifar",
    "resnet20",
    "resnet56",
]
