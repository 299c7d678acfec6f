"""What the adversarial methods share: generators, discriminator, losses, pool, registration."""
