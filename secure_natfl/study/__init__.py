"""Studies: many runs of one federation, compared on predictions for images held back."""
