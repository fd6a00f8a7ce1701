"""Between nn.Module and the ops: which modules may be fused, and how a block of them runs."""
