"""The run directory: one frozen record per artefact, with hashes, a lock and atomic files.

May import: errors. Independent of torch, models and statistics, so that a program reads a run without them.
"""
