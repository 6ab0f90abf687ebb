"""`python -m ontogeny`."""

from ontogeny.cli.main import main

if __name__ == "__main__":
    main()
