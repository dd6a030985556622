"""Running a bundle over files: all items of a folder or a table, in order, with results as parquet."""

from eenet.predict._inputs import open_items
from eenet.predict._predict import Summary, predict
from eenet.predict._ray import predict_on_ray

__all__ = ["Summary", "open_items", "predict", "predict_on_ray"]
