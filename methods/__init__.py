"""One folder per method: `method.py`, `card.toml`, `README.md`. Removing a folder removes the method."""
