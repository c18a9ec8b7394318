"""Data: folders and LMDBs with a common interface, checks of pairs, and samples determined by seed and draw number."""
