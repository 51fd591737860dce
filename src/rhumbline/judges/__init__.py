"""Judges that read completions after a run: published classifiers, any chat model with a rubric, an endpoint.

    published.toml   the published ones: model, prompt, how the answer is read
    specs.py         a judge as data, from there or from a file of yours; an answer -> a judgement
    asking.py        a judge's model asked about prompts and responses, in batches
    endpoint.py      a judge behind an OpenAI-compatible address
    judgements.py    a run directory judged: cached per completion and judge, rates, agreement

They run after the run and not beside it: a judge of many billion weights needs the device that the model held, the
verdict rests on the judge that the protocol names and no other, and a run can be judged by one that did not exist yet.
So the run must have kept its completions (--save-completions). The keyword judges are in judging.py.
"""

from rhumbline.judges.specs import Judgement, JudgeSpec, published, read_judge

__all__ = ["JudgeSpec", "Judgement", "published", "read_judge"]
