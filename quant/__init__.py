"""Float models in, mixed-precision integer graphs out; the only folder that imports torch."""
