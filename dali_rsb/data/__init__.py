"""The data path.

Which images there are (`dataset`), the order of an epoch (`sampler`), what chance decides
(`draws`), a batch before it is decoded (`samples`), and the loaders around the DALI graphs.
"""
