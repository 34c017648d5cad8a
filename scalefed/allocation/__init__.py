"""How is a budget divided between size and data? Limits, costs and the least loss within them."""
