"""The run log: what was measured, in files that outlive whoever wrote them."""
