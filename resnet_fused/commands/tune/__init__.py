"""python -m resnet_fused tune: measures every backend for the calls that a model makes."""
