"""Liquid Time-Constant networks in torch."""
