"""Benchmarks: which metrics on which splits."""
