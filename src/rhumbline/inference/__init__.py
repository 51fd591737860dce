"""Interventions and arms as data, and the forward passes that run them: batching, decoding, residuals, whole texts.

May import: models and the packages above it. Independent of judges, statistics and files.
"""
