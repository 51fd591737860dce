"""Scores of a behaviour: the token metric, keyword and style judges, and external judges (models or endpoints).

May import: inference, evidence and the packages above them. Independent of directions, seeds and stages.
"""
