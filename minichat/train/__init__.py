"""One trainer for all stages: a configuration, a flat loop, checkpoints that a killed run goes on from."""
