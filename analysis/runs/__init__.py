"""Runs: what was asked, what was learned, and the folder on disk that holds both."""
