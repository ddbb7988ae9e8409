"""The nodes: schemas and a few lines that call the library."""
from .mulan_loader import MulanLoader

NODES = [MulanLoader]
