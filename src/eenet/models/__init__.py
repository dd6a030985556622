"""Networks with exits."""

import eenet._needs_torch  # noqa: F401
from eenet.models._collect import ImageRecords as ImageRecords
from eenet.models._collect import collect as collect
from eenet.models._collect import unpack as unpack
from eenet.models._describe import Description as Description
from eenet.models._describe import StageRow as StageRow
from eenet.models._describe import describe as describe
from eenet.models._heads import HEADS as HEADS
from eenet.models._heads import ConvHead as ConvHead
from eenet.models._heads import DownsamplingHead as DownsamplingHead
from eenet.models._heads import SegmentationHead as SegmentationHead
from eenet.models._heads import StackedConvHead as StackedConvHead
from eenet.models._heads import TokenHead as TokenHead
from eenet.models._heads import VectorHead as VectorHead
from eenet.models._modes import inferring as inferring
from eenet.models._multi_exit import MultiExitModel as MultiExitModel
from eenet.models._multi_exit import attach as attach
from eenet.models._outputs import logits_in as logits_in
from eenet.models._registry import MODELS as MODELS
from eenet.models._registry import ModelSpec as ModelSpec
from eenet.models._registry import build as build
from eenet.models._registry import make_heads as make_heads
from eenet.models._registry import multi_exit as multi_exit
from eenet.models._registry import spec as spec
from eenet.models._sources import Source as Source
from eenet.models._sources import build_network as build_network
