"""Images: sources, preprocessing, and the ImageSet they end in. Knows no privacy."""
