"""A request: files of vectors, vectors by name, the spec and what it resolves to, and what an output brings back."""
