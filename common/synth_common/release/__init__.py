"""Release bundles: synthetic images with their papers, signed, and how anybody checks them."""
