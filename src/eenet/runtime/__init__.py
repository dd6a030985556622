"""Running a policy for real: samples leave at their exits, and deeper stages run only for the rest."""

from eenet.runtime._adaptive import AdaptiveModel as AdaptiveModel
from eenet.runtime._adaptive import AdaptiveOutput as AdaptiveOutput
from eenet.runtime._adaptive import to_numpy as to_numpy
from eenet.runtime._backend import Live as Live
from eenet.runtime._backend import StageBackend as StageBackend
from eenet.runtime._torch_backend import TorchBackend as TorchBackend
