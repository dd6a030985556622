"""The paper's networks, without exits."""

import eenet._needs_torch  # noqa: F401
from eenet.networks._bert import bert as bert
from eenet.networks._bert import bert_exits as bert_exits
from eenet.networks._bert import bert_options as bert_options
from eenet.networks._bert import minilm as minilm
from eenet.networks._densenet import DenseNet as DenseNet
from eenet.networks._densenet import densenet121 as densenet121
from eenet.networks._hrnet import HRNet as HRNet
from eenet.networks._hrnet import hrnet as hrnet
from eenet.networks._msdnet import MSDNet as MSDNet
from eenet.networks._msdnet import MSDNetHead as MSDNetHead
from eenet.networks._msdnet import msdnet35 as msdnet35
from eenet.networks._msdnet import msdnet_cifar as msdnet_cifar
from eenet.networks._resnet import CifarResNet as CifarResNet
from eenet.networks._resnet import load_published as load_published
from eenet.networks._resnet import resnet20 as resnet20
from eenet.networks._resnet import resnet56 as resnet56
