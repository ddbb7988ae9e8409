"""A long run of mixed graphs against a server that people interrupt, leave and kill."""
