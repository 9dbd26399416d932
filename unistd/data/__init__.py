"""Work on data before training: what is there, whether it is whole, what it looks like, and a faster form of it."""
