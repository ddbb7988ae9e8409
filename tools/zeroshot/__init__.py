"""Measurements of `dev.py eval zeroshot`: labels for pictures of the tiny world, or of a data set. Nothing here is a
test.
"""
