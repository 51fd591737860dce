"""Load models, prove their residual writers, encode chats and register hooks: a name becomes a proved `ChatModel`.

Only `hooks.py` registers hooks. May import: errors, axes, records, prompts, organisms. Independent of interventions and
of their purpose.
"""
