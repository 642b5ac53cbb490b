"""The command line: race optimizers against one another on a problem of one's own.

`adam-jax race digits` asks which optimizer, at which learning rate, suits a problem. How to write
a problem is told in `adam_jax.race.problem`.
"""
