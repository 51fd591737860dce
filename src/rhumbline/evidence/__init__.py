"""From records of a run to its evidence: statistics, selection and verdict rules, side effects, the verdict.

Pure functions of artefacts, so `verify` can repeat them. May import: errors, records, prompts. Independent of torch and
of models.
"""
