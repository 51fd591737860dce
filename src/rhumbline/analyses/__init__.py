"""Further questions, asked of a finished run: each module is one analysis, a subject in and one JSON record out.

    subject.py      a run with its model and prompts in hand; where records are written
    geometry.py     how candidates and classes lie to each other
    base.py         the chat model's direction in its base model
    suffix.py       what a suffix does to the direction; attribution.py: which heads and MLPs write along it
    directions.py   is one enough? spans.py: where further directions come from; gradient.py: found by gradient
    monitor.py      the projection as a detector (monitoring.py is the part for anyone's code)

No record decides the run's verdict; `verify` does not depend on them. Nothing here searches for a suffix.
"""
