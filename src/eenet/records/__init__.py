"""ExitRecords: what N samples showed at K exits; the only thing a scheduler is fitted on."""

from eenet.records._checks import are_probabilities as are_probabilities
from eenet.records._checks import kept_numbers as kept_numbers
from eenet.records._checks import missing_labels as missing_labels
from eenet.records._checks import require_class_numbers as require_class_numbers
from eenet.records._checks import require_same_network as require_same_network
from eenet.records._checks import warn_of_probabilities as warn_of_probabilities
from eenet.records._coverage import missing_classes as missing_classes
from eenet.records._coverage import warn_of_chance as warn_of_chance
from eenet.records._coverage import warn_of_missing_classes as warn_of_missing_classes
from eenet.records._records import ExitRecords
from eenet.records._records import require_records as require_records

__all__ = ["ExitRecords"]
