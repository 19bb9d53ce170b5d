"""Measures whole model steps on mempool beside its peers: time, page faults, peak memory, equality of every bit."""
