"""Imported by the packages that need PyTorch before anything else, so that its absence names the extra."""

from eenet._extras import require

require("torch", "torch", "this part of eenet")
