"""U-Nets for spots and roots: model, losses, augmentation, training, prediction."""
