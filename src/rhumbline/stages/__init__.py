"""The stages of one seed, in order (`order.py`): find a direction, draw its nulls, test it on held-out prompts.

Null directions are drawn in `nulls.py`. A stage reads earlier artefacts and writes its own. May import: protocol,
engines and the packages above them. Independent of reports and of the verdict.
"""
