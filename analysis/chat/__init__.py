"""Conversations: the template, sampling, and lanes that answer."""
