"""From raw inputs to a network's arrays, with numpy and, for images, Pillow, or for texts, tokenizers: no torch.

What is written into an exported bundle, so that a server can take image files and texts.
"""

from eenet.preprocessing._base import ArrayPreprocessing, Preprocessing
from eenet.preprocessing._cascade import CascadePreprocessing
from eenet.preprocessing._cascade import preprocessing_from as preprocessing_from
from eenet.preprocessing._images import IMAGENET_MEAN as IMAGENET_MEAN
from eenet.preprocessing._images import IMAGENET_STD as IMAGENET_STD
from eenet.preprocessing._images import ImagePreprocessing
from eenet.preprocessing._texts import TextPreprocessing

__all__ = ["ArrayPreprocessing", "CascadePreprocessing", "ImagePreprocessing", "Preprocessing", "TextPreprocessing"]
