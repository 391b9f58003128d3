"""Results read back, and the page to look through them."""
