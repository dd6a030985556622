"""The data of the paper's six benchmarks, in the formats their publishers use, read with care.

`load` gives a map-style `Dataset`; `three_way_split` cuts train, calibration and test that never overlap; `loader`
makes batches whose order and augmentation depend on a seed and the epoch alone.
"""

from eenet.data._batches import LengthBuckets as LengthBuckets
from eenet.data._batches import ShuffledBatches as ShuffledBatches
from eenet.data._batches import loader as loader
from eenet.data._catalogue import dataset_names as dataset_names
from eenet.data._catalogue import load as load
from eenet.data._collate import TextCollator as TextCollator
from eenet.data._collate import TextSurvey as TextSurvey
from eenet.data._corrupt import CorruptSample as CorruptSample
from eenet.data._dataset import Dataset as Dataset
from eenet.data._dataset import Subset as Subset
from eenet.data._dataset import class_sizes as class_sizes
from eenet.data._image_array import ImageArray as ImageArray
from eenet.data._image_folder import ImageFolder as ImageFolder
from eenet.data._segmentation import CITYSCAPES_IDS as CITYSCAPES_IDS
from eenet.data._segmentation import IGNORED as IGNORED
from eenet.data._segmentation import SegmentationFolder as SegmentationFolder
from eenet.data._split import PARTS as PARTS
from eenet.data._split import ThreeWaySplit as ThreeWaySplit
from eenet.data._split import three_way_split as three_way_split
from eenet.data._texts import Texts as Texts
