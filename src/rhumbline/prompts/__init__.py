"""Labelled prompts: contrasts, their files and named sets, sampling and splits, and texts that losses are measured on.

May import: errors, records. Independent of torch, tokenizers and models.
"""
