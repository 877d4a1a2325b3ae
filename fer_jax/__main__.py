"""Runs the program fer-jax as `python -m fer_jax`."""

from fer_jax.main import command

command()
