"""``python -m mempool``: the command line."""

from mempool.cli import main

if __name__ == "__main__":
    main()
