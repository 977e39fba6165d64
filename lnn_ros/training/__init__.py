"""Imitation learning and closed-loop evaluation."""
