"""The built-in problems, each of the form that `adam_jax.race.problem` documents."""
