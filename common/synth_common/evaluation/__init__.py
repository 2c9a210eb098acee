"""Quality and utility of synthetic images, each number with its N, encoder and floor."""
