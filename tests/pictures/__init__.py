"""Draws the pictures of docs/images anew, from the product itself: `python -m tests.pictures.NAME`."""
