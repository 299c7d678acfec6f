"""RegGAN (Kong et al. 2021): a translator and a network that forgives misregistration."""
