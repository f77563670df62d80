"""Attention maps: of the newest tokens, of one row, and of captured stretches at any scale."""
