"""Attacks on gradients and weight updates: what they tell of the images behind them."""
