"""``python -m bertmill`` is ``bertmill``: what ``torchrun`` starts."""

from bertmill.cli import main

if __name__ == "__main__":
    main()
