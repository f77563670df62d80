"""What a lane keeps: one store of keys and values for each way of keeping them."""
