"""Kernels in C for the CPU, each with a twin in torch that is used where they cannot run."""
