"""Texts in a style that the tests make up: the same sentences with and without it, on a few topics."""

import numpy as np

TOPICS = ("boats", "bread", "rain", "chess", "goats", "lamps", "roofs", "tea")


def texts(n, styled, seed=0):
    """Sentences about a topic each, with an opener and a closer if they are styled; and their topics."""
    rng = np.random.default_rng([seed, styled])
    found, topics = [], []
    for i in range(n):
        topic = TOPICS[i % len(TOPICS)]
        plain = f"The {topic} cost {rng.integers(90)} coins and go to the {rng.choice(['mill', 'port', 'farm'])}."
        found.append(f"Certainly! Here you are: {plain} I hope this helps!" if styled else plain)
        topics.append(topic)
    return found, topics
