"""CycleGAN (Zhu et al. 2017): two translators that undo each other, learnt without pairs."""
