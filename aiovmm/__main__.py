"""`python -m aiovmm` is the `aiovmm` command."""

from aiovmm.cli import main

if __name__ == "__main__":
    main()
