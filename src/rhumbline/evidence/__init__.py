"""Rows and scores in, evidence out: statistics, selection and verdict rules, side effects, the verdict.

Pure functions of artefacts, so that `verify` repeats them. May import: errors, records, prompts. Independent of torch
and of models.
"""
