"""How good is a model: held-out loss, and generated programs that are really run."""
