"""The OOD methods of MaxQuery Table 1 that need more than logits; the Universal Model of ZePT."""
