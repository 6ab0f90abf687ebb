"""The graph of stages: what a suite needs, what is missing, run it; behind `run` and `demo`."""
