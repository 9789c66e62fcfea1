"""The figures of docs/ROAD.md and docs/PRETRAINING.md: `python -m benchmarks.figures` draws them all again.

Each file here draws a figure or two, from the model's own code, the configurations of the road, and what its runs left.
"""
