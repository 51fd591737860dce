"""Interventions as weight edits, proved against the hooks or not saved; import and export of directions.

May import: experiment and the packages above it. Independent of evaluations, analyses and the command line.
"""
