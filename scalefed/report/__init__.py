"""What should a person read and move? The offline page."""
