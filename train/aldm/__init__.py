"""ALDM (Kim and Park 2024): latent diffusion conditioned by SPADE in the latent space."""
