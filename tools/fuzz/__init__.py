"""Malformed and extreme inputs for every node, from a seed; what the server answers is judged by rules.

`python dev.py fuzz --cases 7000 --seed 1`. A case is made again, alone, from its id: node/kind/input/name.
"""
