"""Results: what runs say, as records; dictionaries of them exist only in files."""
