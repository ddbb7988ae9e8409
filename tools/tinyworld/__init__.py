"""The embedded default: a world of coloured shapes, the tiny models that learned it, and the pack they ship in."""
