"""Small transformers that are trained while one watches."""
