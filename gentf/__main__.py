"""`python -m gentf`: the same as the `gentf` command."""

from gentf.cli.main import main

if __name__ == "__main__":
    main()
