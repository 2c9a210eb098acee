"""Attacks on released images and models, with baselines, controls and intervals."""
