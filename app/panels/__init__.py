"""Parts of pages that are too large to stand in their views."""
