"""Exits at named layers of any Chain, which BranchyNet.from_chain puts there."""
