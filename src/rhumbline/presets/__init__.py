"""The models and settings of the paper and of the reproduction blog, as data, and runs compared with them.

May import: protocol and the packages above it. Independent of stages.
"""
