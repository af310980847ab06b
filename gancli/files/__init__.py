"""Files: written whole or not at all, read as data, and where those of the user are."""
