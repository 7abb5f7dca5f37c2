"""Timing of each engine, one clock at a time, without data."""
