"""Metrics: arrays or callables in, numbers with standard errors out."""
