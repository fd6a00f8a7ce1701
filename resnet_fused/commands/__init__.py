"""python -m resnet_fused: a module a command."""
