"""The stages of one seed, in the order of `order.py`: select a direction, draw its nulls, test it on test prompts.

Each module named after a stage reads the files of earlier stages and returns the record of its own file. Null
directions are drawn in `null_directions.py`. May import: protocol, engines and the packages above them.
Independent of the report and of the verdict.
"""
