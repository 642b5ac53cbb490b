"""The command line: race optimizers against one another on a problem of one's own.

`adam-jax race digits` asks which optimizer, at which learning rate, suits a problem; `adam-jax
tune digits`, which learning rate suits an optimizer, and how far off it one may go. How to write a
problem is told in `adam_jax.race.problem`.
"""
