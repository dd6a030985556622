"""One file for each method: how it scores, how it is fitted, and its scheduler."""
