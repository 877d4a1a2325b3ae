"""The program, as `python -m fer_jax`."""

from fer_jax.main import command

command()
