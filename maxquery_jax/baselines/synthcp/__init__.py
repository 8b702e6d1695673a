"""SynthCP (Xia et al., ECCV 2020): synthesise a scan from its labels, compare."""
