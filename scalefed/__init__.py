"""Federated scaling laws for code models: make runs, fit laws, choose the size."""
