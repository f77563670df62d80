"""Experiments: grids of runs, what papers measured, what each head is worth, and what reading costs."""
