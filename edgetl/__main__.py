"""`python -m edgetl`."""

from edgetl.cli.app import main

if __name__ == "__main__":
    main()
