"""`python -m minichat`."""

from __future__ import annotations

from minichat.cli import main

if __name__ == "__main__":
    main()
