"""Records of finished cases: what they hold, where they are kept, and how they are grouped."""
