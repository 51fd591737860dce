"""Runs in other evaluation tools: lm-evaluation-harness, Inspect, and `Monitor` for anyone's code.

May import: experiment and the packages above it. Independent of edits.
"""
