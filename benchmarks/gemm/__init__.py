"""Times linear layers by number of tokens: packed weights beside other implementations on a CPU.

Every implementation is timed in one process, in turn, on weights that are rotated through `RING_BYTES`, so that they
come from memory as they do in a model. The ceilings (memory, int8 and float32 arithmetic) are measured in the same
process, between the rounds, and every result is given as a share of the ceiling that bounds it.
"""

SHAPES: tuple[tuple[int, int], ...] = ((4096, 4096), (11008, 4096), (4096, 11008))  # outputs, inputs
TOKENS: tuple[int, ...] = (1, 4, 8, 16, 64, 512)
RING_BYTES = 220_000_000
OURS = "int8"
