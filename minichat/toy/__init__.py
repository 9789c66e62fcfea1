"""The synthetic world: seeded scenes, pictures of them, and what is true of them in words."""
