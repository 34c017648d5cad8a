"""How does the same run happen in Flower? The engine, the app on disk, and the log around a strategy."""
