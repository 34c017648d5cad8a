"""Federated training: client steps, server steps, who takes part, and the loop over rounds."""
