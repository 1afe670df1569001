"""The parts that both ways to compute share: rows, losses, steps, checkpoints, devices. It imports neither of them."""
