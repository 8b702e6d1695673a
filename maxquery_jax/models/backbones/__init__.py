"""Pixel encoders and decoders behind one interface: image to `PixelFeatures`."""
