"""The data of the paper's six benchmarks and of the demo, in the formats their publishers use.

`load` gives a map-style `Dataset`; `three_way_split` cuts train, calibration and test that never overlap; `loader`
makes batches whose order and augmentation depend on a seed and the epoch alone.
"""

from eenet.experiments.data._dataset import Dataset
from eenet.experiments.data._dataset import Subset as Subset
from eenet.experiments.data._load import dataset_names, load, loader
from eenet.experiments.data._small_images import ImageArray
from eenet.experiments.data._split import ThreeWaySplit, three_way_split
from eenet.experiments.data._texts import TextCollator as TextCollator
from eenet.experiments.data._texts import Texts

__all__ = ["Dataset", "ImageArray", "Texts", "ThreeWaySplit", "dataset_names", "load", "loader", "three_way_split"]
