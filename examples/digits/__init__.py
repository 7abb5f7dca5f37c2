"""A ViT and a CNN on scikit-learn's handwritten digits."""
