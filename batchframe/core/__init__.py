"""The functional core: values in, values out.

Nothing here touches the network, a disk, a clock, randomness or a dataframe library, so that all
of it is tested by tables and properties, and so that it can run wherever the rows are.
"""
