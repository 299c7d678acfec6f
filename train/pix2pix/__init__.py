"""pix2pix (Isola et al. 2017): a conditional GAN on pairs."""
