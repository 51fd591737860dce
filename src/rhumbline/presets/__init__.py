"""Presets, experiment files, and the models and figures of the paper and of the reproduction blog, as data.

May import: protocol and the packages above it. Independent of stages.
"""
