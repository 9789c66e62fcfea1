"""A loaded model at work: many replies at once."""
