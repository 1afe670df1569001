"""Trains the weights: the only folder that imports torch."""
