"""Running a bundle over files: whatever is in a folder or a table, in order, with results as parquet."""

from eenet.predict._inputs import Items as Items
from eenet.predict._inputs import open_items as open_items
from eenet.predict._inputs import read_arrays_file as read_arrays_file
from eenet.predict._predict import Summary as Summary
from eenet.predict._predict import predict as predict
from eenet.predict._ray import predict_on_ray as predict_on_ray
from eenet.predict._rows import rows_of as rows_of
