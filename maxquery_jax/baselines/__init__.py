"""OOD baselines of MaxQuery Table 1 that need more than a trained nnU-Net's logits."""
