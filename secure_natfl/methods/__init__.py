"""What the systems are made of: networks, losses and training rules of their papers."""
