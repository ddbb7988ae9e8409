"""Measurements of `dev.py bench`: this pack beside mulankit 1.0.2, each in processes of its own. Nothing here is a
test.
"""
