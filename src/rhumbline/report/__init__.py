"""The report of a finished run: one self-contained page with its figures, and tables and a page that compare runs.

Every number on a page is in a file of the run directory. May import: records, evidence, protocol. Independent of torch
and models.
"""
