"""Talk about pictures in a web page: `python demo.py`, or `make demo`. It is `minichat demo`, with the same options."""

import sys

from minichat.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
