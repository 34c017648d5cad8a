"""How does another tool's record become a run log? One module a kind of source."""
