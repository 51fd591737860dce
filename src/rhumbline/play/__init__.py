"""See a model change: baseline and edited completions side by side, on the terminal and on a local page.

Measures nothing for a verdict. May import every package but the command line.
"""
