"""How often will a model of this loss solve a problem? Curves from loss to pass@k, fitted to counts."""
