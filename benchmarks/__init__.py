"""Benchmarks of mempool: each prints a table and writes JSON, always beside a peer measured in the same run."""
