"""What a worker does every few seconds besides delivering: a class for each chore, and a runner."""
