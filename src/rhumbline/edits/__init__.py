"""Weight edits that are proved against the hooks before they are saved, and import and export of directions.

May import: experiment and the packages above it. Independent of evaluations, analyses and the command line.
"""
