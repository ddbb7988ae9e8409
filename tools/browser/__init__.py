"""Templates in a real browser: what a person sees of them is measured, and laid out by what each node needs."""
