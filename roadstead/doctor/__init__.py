"""Is a system well, and what to do if not: what `roadstead doctor` looks at.

`system` finds the nodes, `nodes` looks at each of them, `whole` at what they have together, `message` sends one all the
way. Each look is a `Finding`; one that fails keeps none of the others from being made.
"""
