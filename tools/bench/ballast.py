"""Holds all of a card but so many bytes until stdin closes: python ballast.py DEVICE BYTES (0: hold nothing). Prints
the bytes that are free.
"""

import sys

import psutil
import torch

device, size = sys.argv[1], int(sys.argv[2])
if device == "cpu":
    print(psutil.virtual_memory().available, flush=True)
else:
    torch.cuda.init()
    kept = torch.empty(max(0, torch.cuda.mem_get_info()[0] - size) if size else 0, dtype=torch.uint8, device=device)
    print(torch.cuda.mem_get_info()[0], flush=True)
sys.stdin.read()
