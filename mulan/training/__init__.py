"""The trainer of MuLan adapters. Run as a command: `python -m custom_nodes.mulan-nodes.mulan.training --help`."""
