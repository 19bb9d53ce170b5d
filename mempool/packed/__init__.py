"""Layers whose weights stay packed while they are used: their formats, their operators, and the modules.

``mempool.nn`` and ``mempool.ops`` are its faces.
"""
