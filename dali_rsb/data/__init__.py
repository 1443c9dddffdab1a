"""The data path: dataset index, order of an epoch, draws, and the loader around the DALI graphs."""
