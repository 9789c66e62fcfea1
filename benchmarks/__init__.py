"""Measurements that print a Markdown table; run from the project's folder."""
