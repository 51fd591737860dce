"""Names of models in, proved `ChatModel`s out: loading, the proof of the residual writers, the chat template, hooks.

Only `hooks.py` registers hooks. May import: errors, axes, records, prompts, organisms. Independent of interventions:
what is added or removed at a site, and why, is decided elsewhere.
"""
