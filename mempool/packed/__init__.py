"""Linear layers that run on packed int8 weights: the formats, their operators, and the modules.

``mempool.nn`` and ``mempool.ops`` are its public faces.
"""
