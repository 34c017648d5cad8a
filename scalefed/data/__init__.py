"""Text to train on, problems to be judged by, and how both are shared out over clients."""
