"""Sticky A/B rollouts: assignment of users to arms, outcomes, and comparison of the arms. No engine, no network."""
