"""Proof, retention and scores: nothing is said about a model that was not measured beside its base."""
