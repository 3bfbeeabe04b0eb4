"""Options, their files, and keys of stored results."""
