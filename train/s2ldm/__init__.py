"""The similarity-aware syncretic latent diffusion model (arXiv 2406.13977), both stages."""
