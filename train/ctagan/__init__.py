"""CTA-GAN (Lyu et al. 2023): RegGAN for CT angiography, with a closer look at the centre."""
