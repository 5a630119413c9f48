"""Measures Tidings beside its peers: every worker and publisher a process of its own, rounds interleaved."""
