"""Grow controlled suites of language models and study how they grow."""
