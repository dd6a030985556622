"""Networks with exits: made, described, saved and loaded, and run over data to get records."""

import eenet._needs_torch  # noqa: F401
from eenet.models._cascade import cascade
from eenet.models._cascade_network import InputMap
from eenet.models._collect import ImageRecords as ImageRecords
from eenet.models._collect import collect
from eenet.models._describe import Description as Description
from eenet.models._describe import StageRow as StageRow
from eenet.models._describe import describe
from eenet.models._heads import (
    HEADS,
    AnswerHead,
    ConvHead,
    DownsamplingHead,
    GridHead,
    SegmentationHead,
    SequenceHead,
    StackedConvHead,
    TokenHead,
    VectorHead,
)
from eenet.models._io import inferring as inferring
from eenet.models._io import logits_in as logits_in
from eenet.models._io import unpack as unpack
from eenet.models._multi_exit import MultiExitModel, attach
from eenet.models._multi_exit import require_exits as require_exits
from eenet.models._named import from_pretrained, multi_exit
from eenet.models._networks import MODELS as MODELS
from eenet.models._networks import Source, build_network, make_heads
from eenet.models._networks import known as known

__all__ = [
    "HEADS",
    "AnswerHead",
    "ConvHead",
    "DownsamplingHead",
    "GridHead",
    "InputMap",
    "MultiExitModel",
    "SegmentationHead",
    "SequenceHead",
    "Source",
    "StackedConvHead",
    "TokenHead",
    "VectorHead",
    "attach",
    "build_network",
    "cascade",
    "collect",
    "describe",
    "from_pretrained",
    "make_heads",
    "multi_exit",
]
