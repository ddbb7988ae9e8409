"""The MuLan and InternVL nodes: schemas and a few lines that call the library."""
