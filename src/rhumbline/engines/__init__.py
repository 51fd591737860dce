"""Where independent jobs run: in this process or on a Ray cluster.

May import: errors, records. Independent of torch and of the content of a job.
"""
