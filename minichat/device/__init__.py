"""Where a model can go: what this machine has, what a model needs of it, and in which precision it is put where."""
