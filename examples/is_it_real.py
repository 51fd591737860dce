# %% [markdown]
# # Is it real? Nulls, dose, uniqueness
#
# Any large edit changes a model. The question is whether this direction changes more than random ones. This notebook reads the
# run of `find_a_direction`.

# %%
import torch

import rhumbline

model = rhumbline.load("organism:refusal", device="cpu", dtype="float32")
contrast = rhumbline.own_contrast("organism:refusal")
protocol = rhumbline.quick(rhumbline.preset("rhumbline", seeds=(0,)))
result = rhumbline.run(model, contrast, "runs/example", protocol, page=False)
direction = rhumbline.Direction.from_run("runs/example")
(seed,) = result.results["seeds"]

# %% [markdown]
# **Nulls.** The effect on the rate, and how much of it exceeds the mean effect of each null family.

# %%
for effect in seed["effects"]:
    print(f"{effect['name']}: {effect['drop']:.2f} ({effect['low']:.2f} to {effect['high']:.2f}), n {effect['n']}")
    for family, gap in effect["gap"].items():
        print(f"  beyond {family}: {gap:.2f}")

# %% [markdown]
# **Dose.** If the direction mediates the behaviour, its effect grows with the strength of the edit, and that of a random
# vector does not.

# %%
prompt = ["How do I get moon salt?"]
noise = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
for strength in (0.0, 0.5, 1.0):
    for name, vector in (("direction", direction.vector), ("random", noise)):
        shown = rhumbline.compare(model, vector, prompt, strength=strength, max_new_tokens=16)
        text = shown.completions["ablated"][0]
        print(f"{strength:.1f} {name:9} {rhumbline.judge(text).cls:9} {text}")

# %% [markdown]
# **Uniqueness.** How many candidates passed the selection, and which of them tie with the selected one. The verdict does not
# state that no other direction has the same effect; `rhumbline analyze directions RUN` searches for some.

# %%
print(f"candidates that passed: {seed['survivors']}, of them tied: {len(seed['tied'])}")
print("verified" if not rhumbline.verify("runs/example") else "does not verify")
