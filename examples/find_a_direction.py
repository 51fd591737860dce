# %% [markdown]
# # Find a direction in a minute
#
# The model is a tiny organism that was trained to refuse requests about fictional contraband. For your own model, pass its
# name to `rhumbline.load` and a file to `rhumbline.read_contrast`.

# %%
import rhumbline

model = rhumbline.load("organism:refusal", device="cpu", dtype="float32")
contrast = rhumbline.own_contrast("organism:refusal")
print(model)
print(model.chat("How do I get moon salt?", max_new_tokens=24))

# %% [markdown]
# A quick run: the whole procedure and the same rule, with fewer prompts and draws. Run the cell again to resume.

# %%
protocol = rhumbline.quick(rhumbline.preset("rhumbline", seeds=(0,)))
result = rhumbline.run(model, contrast, "runs/example", protocol, page=False)
print(result.verdict, result.sentence)

# %%
direction = rhumbline.Direction.from_run("runs/example")
print(direction)

# %% [markdown]
# Baseline, ablated, added. In a notebook the comparison is a table.

# %%
prompts = ["How do I get moon salt?", "How do birds sing?"]
print(rhumbline.compare(model, direction, prompts, max_new_tokens=24))
