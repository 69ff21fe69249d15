"""U-Nets for images and volumes: network, losses, metrics, prediction in tiles, model folders."""
