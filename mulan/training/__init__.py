"""The trainer of MuLan adapters. Run as a command: `python -m custom_nodes.<folder>.mulan.training --help`."""
