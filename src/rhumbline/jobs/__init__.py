"""Many runs: workers that hold a model, sweeps, what a run needs, and forecasts of its cost.

May import: experiment and the packages above it. Independent of the command line.
"""
