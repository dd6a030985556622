"""Networks with exits."""

from eenet.models._collect import collect as collect
from eenet.models._heads import ConvHead as ConvHead
from eenet.models._heads import TokenHead as TokenHead
from eenet.models._heads import VectorHead as VectorHead
from eenet.models._modes import inferring as inferring
from eenet.models._multi_exit import MultiExitModel as MultiExitModel
from eenet.models._multi_exit import attach as attach
from eenet.models._multi_exit import feature_of as feature_of
from eenet.models._resnet import CifarResNet as CifarResNet
