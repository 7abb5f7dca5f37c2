"""Examples that the demo runs: plain torch models, their training and their weights."""
