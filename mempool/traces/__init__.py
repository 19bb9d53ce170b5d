"""Traces: what an allocator was asked for, recorded (``mempool.record_trace``) and replayed (``mempool.replay``)."""
