"""Benchmarks: read their files, ask a bundle, score as published."""
