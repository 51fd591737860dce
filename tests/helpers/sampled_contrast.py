"""Contrasts whose splits are sampled, although their files fix them."""

from dataclasses import replace

from rhumbline.prompts.contrasts import ContrastSet


def sampled_contrast(contrast: ContrastSet) -> ContrastSet:
    """The rows without a split, so that the splits of a run have the sizes of its protocol."""
    return replace(contrast, prompts=tuple(p for p in contrast.prompts if p.split is None))
