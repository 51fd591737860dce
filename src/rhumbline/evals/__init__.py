"""Evaluations of arms in other tools: lm-evaluation-harness, Inspect AI, and the monitor.

May import: experiment and the packages above it. Independent of edits, analyses and the command line.
"""
