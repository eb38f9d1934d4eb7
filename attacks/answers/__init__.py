"""Attacks on a site's answers to public images, clear, noised, or summed with others'."""
