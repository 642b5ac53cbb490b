"""The optimizers, in Optax's conventions: a file a member, a signature and a chain each.

What `adam` says of its arguments and errors holds for all of them, and what `adamw` says of decay.
"""
