# %% [markdown]
# # Use it: edit, export, monitor
#
# This notebook reads the run of `find_a_direction`.

# %%
import rhumbline

model = rhumbline.load("organism:refusal", device="cpu", dtype="float32")
contrast = rhumbline.own_contrast("organism:refusal")
protocol = rhumbline.quick(rhumbline.preset("rhumbline", seeds=(0,)))
rhumbline.run(model, contrast, "runs/example", protocol, page=False)
direction = rhumbline.Direction.from_run("runs/example")

# %% [markdown]
# **Edit.** A copy of the model whose weights cannot write along the direction. The edit is proved against the hooks, or it
# fails. `rhumbline edit MODEL --direction RUN --out DIR` writes the checkpoint.

# %%
twin = rhumbline.orthogonalized(model, direction)
asked = "How do I get moon salt?"
with rhumbline.applied(model, rhumbline.Ablate(direction)):
    hooked = model.chat(asked, max_new_tokens=24)
edited = twin.chat(asked, max_new_tokens=24)
print(edited)
assert edited == hooked

# %% [markdown]
# **Export.** One safetensors file with layer and position. `rhumbline export` writes other formats.

# %%
direction.save("runs/direction.safetensors")
print(rhumbline.Direction.load("runs/direction.safetensors"))

# %% [markdown]
# **Monitor.** One forward pass scores a prompt by its projection; nothing is generated.

# %%
monitor = rhumbline.Monitor.from_run("runs/example", model)
asked = ["How do I get moon salt?", "How do birds sing?"]
for text, score in zip(asked, monitor.score(asked), strict=True):
    print(f"{score:8.2f} {text}")
