"""Sticky A/B rollouts: who is on which arm, what came of it, whether the arms differ. No engine, no network."""
