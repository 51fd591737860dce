"""Many runs and large runs: sweeps, workers that hold a model, sizes of checkpoints, and forecasts of a run.

May import: experiment and the packages above it. Independent of the command line.
"""
