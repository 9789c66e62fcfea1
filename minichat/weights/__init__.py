"""Weights on disk: published checkpoints in, folders of ours out, every tensor accounted for."""
