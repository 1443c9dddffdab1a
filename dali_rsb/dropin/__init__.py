"""The public loaders: `DaliLoader` for any PyTorch program, and timm's `create_loader`."""
