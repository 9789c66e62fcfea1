"""Conversations about pictures on disk: formats in, batches out."""
