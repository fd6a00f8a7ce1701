"""The convolution ops that the public functions share: schema, fake, gradients."""
