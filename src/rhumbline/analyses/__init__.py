"""Further measurements on finished runs and on models; each analysis computes one record.

    subject.py               one seed of a finished run, with its model, prompts and token metric
    geometry.py              cosines between candidates, and separation of the classes
    base_model.py            the direction on the activations of the base model
    suffix_effects.py        effects of suffixes on the direction; attribution.py: which heads and MLPs write it
    further_directions.py    whether one direction is enough; direction_sources.py: where further ones come from
    detector.py              the projection as a detector
    frontier.py              interventions at equal damage; frontier_fits.py: how they are fitted; erasure.py: LEACE;
                             dosed_interventions.py, trajectory_kl.py: strengths of equal KL on harmless answers
    trajectory.py            at which tokens the direction acts; think_blocks.py: through a think block
    meaning.py               harmful content or refusal; crossed_prompts.py, harm_judgement.py
    circuit.py               which heads and MLPs carry the effect; patching.py: replaced writes
    judged.py                classes of completions under arms, their changes, and null directions
    dissociation.py, flinch.py, robustness.py    several runs or models; report/sheets.py writes their pages
    style_doses.py           a style over doses, on a contrast that the model made; style_readouts.py: its readouts

May import every package except cli. Verdicts and verification of runs are independent of the analyses.
"""
