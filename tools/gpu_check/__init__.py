"""A check on a machine with a GPU and no network: parity with the CPU, graphs, speed and memory. See README.md."""
