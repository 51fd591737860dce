"""A finished run as one self-contained page: sections, figures, and the page that compares runs.

Draws what artefacts say and decides nothing. May import: records, evidence. Independent of torch and models.
"""
