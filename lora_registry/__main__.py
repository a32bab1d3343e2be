"""`python -m lora_registry`."""

import sys

from lora_registry.cli import main

if __name__ == "__main__":
    sys.exit(main())
