"""Recipes and the trainer: what trains, on what, at which rate, for how long."""
