"""Where independent jobs run: in this process or on a Ray cluster.

May import: errors, records. Independent of torch and of what a job computes.
"""
