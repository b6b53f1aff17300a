"""Benchmarks: ratios against a baseline of the same run, printed and kept in docs/BENCHMARKS.md."""
