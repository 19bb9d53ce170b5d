"""Traces of allocations and frees: they are recorded (``mempool.record_trace``) and replayed (``mempool.replay``)."""
