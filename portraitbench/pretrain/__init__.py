"""The recipe of the tiny models: VAE, UNet with text encoder, recognisers, judges. `make pretrain` runs all of it."""
