"""`python -m adam_jax` is the command line `adam-jax`."""

from adam_jax.race.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
