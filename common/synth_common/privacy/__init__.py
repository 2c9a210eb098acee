"""The only room that turns private images into numbers that may leave a site."""
