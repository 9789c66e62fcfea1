"""How people talk about a synthetic scene: what they mean, in whose words they say it, and what is true."""
