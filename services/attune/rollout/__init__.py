"""Verdicts to traffic: gives a policy that passed the gate its persona's traffic, and gives it back when told."""
