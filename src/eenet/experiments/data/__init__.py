"""The data of the paper's six benchmarks, in the formats their publishers use, read with care.

`load` gives a map-style `Dataset`; `three_way_split` cuts train, calibration and test that never overlap; `loader`
makes batches whose order and augmentation depend on a seed and the epoch alone."""

from eenet.experiments.data._batches import LengthBuckets as LengthBuckets
from eenet.experiments.data._batches import ShuffledBatches as ShuffledBatches
from eenet.experiments.data._batches import loader as loader
from eenet.experiments.data._catalogue import dataset_names as dataset_names
from eenet.experiments.data._catalogue import load as load
from eenet.experiments.data._collate import TextCollator as TextCollator
from eenet.experiments.data._collate import TextSurvey as TextSurvey
from eenet.experiments.data._corrupt import CorruptSample as CorruptSample
from eenet.experiments.data._dataset import Dataset as Dataset
from eenet.experiments.data._dataset import Subset as Subset
from eenet.experiments.data._dataset import class_sizes as class_sizes
from eenet.experiments.data._image_array import ImageArray as ImageArray
from eenet.experiments.data._image_folder import ImageFolder as ImageFolder
from eenet.experiments.data._segmentation import CITYSCAPES_IDS as CITYSCAPES_IDS
from eenet.experiments.data._segmentation import IGNORED as IGNORED
from eenet.experiments.data._segmentation import SegmentationFolder as SegmentationFolder
from eenet.experiments.data._split import PARTS as PARTS
from eenet.experiments.data._split import ThreeWaySplit as ThreeWaySplit
from eenet.experiments.data._split import three_way_split as three_way_split
from eenet.experiments.data._texts import Texts as Texts
